"""Parameters and multiply-adds of each variant by module, and the efficiency columns of the paper's Tables 5 to 8.

    python -m analysis.complexity                           counts alone: seconds on a CPU
    python -m analysis.complexity --variants mine,klff      these variants alone
    python -m analysis.complexity --table 8 --format latex
    python -m analysis.complexity --measure --batch 4       time and memory too, on this device

Without --variants: the recipes in configs/ablation/ and all registered modules. --measure times a training step (loss
without its VGG19 term) and the restoration of one image by each variant, in fp32, each in a process of its own: the
median of --repeats runs after one to warm up, and the peak memory above weights and image. analysis/macs.py says how
multiply-adds are counted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from analysis.variants import (
    TABLES,
    Variant,
    add_variants_flag,
    find_variants,
    paper_rows,
    recipe_variants,
    registered_variants,
    table_variants,
)
from engine.config import ModelConfig
from engine.evaluate.table import FORMATS, NOT_MEASURED, PAPERS, Column, Figure, Line, Table

if TYPE_CHECKING:
    import torch

    from analysis.macs import Counts
    from models import XYScanNet

# Heavier modules are imported where they are used: --help needs no PyTorch.

MODULES = "modules"  # the tables by module
HERE = " (here)"
DIGITS = {"train s": 0, "step s": 3, "test s": 3}  # the others have two
# The columns that are counted or measured; "step s" and "GMACs" are not the paper's.
COLUMNS = {
    5: ("params (M)", "GMACs", "train s", "step s", "train GB", "test s", "test GB"),
    6: ("GMACs", "train GB", "test GB"),
    7: ("GMACs", "train s", "step s", "train GB", "test s", "test GB"),
    8: ("GFLOPs", "GMACs", "params (K)"),
}
MEASURED = ("step s", "train GB", "test s", "test GB")
FUSION_ALONE = 8


class Network(NamedTuple):
    """A variant's network as ``benchmarks.network.run`` builds it: fp32, scanned by the device's fastest backend."""

    label: str
    options: dict

    def __str__(self) -> str:
        return self.label

    def build(self, dim: int, num_blocks: tuple[int, ...], device: torch.device) -> XYScanNet:
        import torch

        from models import XYScanNet

        torch.manual_seed(0)
        return XYScanNet(**{**self.options, "dim": dim, "num_blocks": num_blocks}).to(device)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return nullcontext()


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from engine.console import readable_errors

    with readable_errors():
        run(arguments)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (MODULES, *map(str, TABLES))
    parser.add_argument("--table", nargs="+", default=choices, choices=choices, help="default: all")
    add_variants_flag(parser, "the columns and rows")
    parser.add_argument("--dim", type=int, help="the networks' channels; default: each recipe's, 48 in the paper's")
    parser.add_argument("--num_blocks", type=int, nargs=3, metavar="N", help="default: each recipe's, 3 3 6")
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="side of the image whose multiply-adds are counted (default %(default)s)",
    )
    parser.add_argument("--format", default="text", choices=FORMATS)
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--measure", action="store_true", help="time and memory too; minutes on a GPU, tens of minutes on a CPU"
    )
    measuring.add_argument("--device", default=None, help="default: a GPU where there is one")
    measuring.add_argument(
        "--batch",
        type=int,
        default=4,
        metavar="N",
        help="of a training step (default %(default)s; the paper does not give its own)",
    )
    measuring.add_argument("--train_size", type=int, default=128, metavar="PIXELS", help="default %(default)s")
    measuring.add_argument(
        "--test_size", type=int, nargs=2, default=[720, 1280], metavar=("H", "W"), help="default 720 1280"
    )
    measuring.add_argument("--repeats", type=int, default=3, metavar="N", help="default %(default)s")
    measuring.add_argument(
        "--limit",
        type=float,
        default=600,
        metavar="SECONDS",
        help="a measurement that takes longer is left out (default %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.dim is not None and (arguments.dim < 2 or arguments.dim % 2):
        parser.error(f"--dim must be even, at least 2, got {arguments.dim}")
    if arguments.num_blocks and min(arguments.num_blocks) < 1:
        parser.error(f"--num_blocks must be positive, got {arguments.num_blocks}")
    if arguments.size < 8 or arguments.size % 4:
        parser.error(f"--size must be a multiple of 4, at least 8, got {arguments.size}")
    if min(arguments.train_size, *arguments.test_size) < 8 or min(arguments.batch, arguments.repeats) < 1:
        parser.error("--train_size and --test_size must be at least 8, --batch and --repeats at least 1")
    from engine.console import check_device

    arguments.device = check_device(parser, arguments.device)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Count, measure what is asked for, and print the tables."""
    import torch
    from tqdm import tqdm

    from analysis.macs import count_network
    from models import XYScanNet

    given = find_variants(arguments.variants)
    columns = given or [*recipe_variants(), *registered_variants("fusion", "vssm")]
    rows = {number: given or own_rows(number) for number in TABLES if str(number) in arguments.table}
    wanted = dict.fromkeys([*(columns if MODULES in arguments.table else []), *itertools.chain(*rows.values())])
    options = {variant: model_options(variant, arguments) for variant in wanted}
    counts = {}
    for variant in tqdm(wanted, desc="counting", leave=False, disable=None):
        with torch.device("meta"):  # shapes alone
            network = XYScanNet(**options[variant])
        counts[variant] = count_network(network, arguments.size)
    if MODULES in arguments.table:
        networks = described({variant.label: options[variant] for variant in columns})
        for table in tables_by_module({variant.label: counts[variant] for variant in columns}, arguments.size):
            table.notes.insert(0, f"Columns: {networks}.")
            print(table.render(arguments.format), end="\n\n", flush=True)

    measured: dict[Variant, dict[str, Figure]] = {}
    for number, variants in rows.items():  # each table is printed before the next one is measured, which takes long
        if arguments.measure and number != FUSION_ALONE:
            for variant in tqdm(variants, desc="measuring", leave=False, disable=None):
                if variant not in measured:
                    measured[variant] = measure(Network(variant.label, options[variant]), arguments)
        own = {
            variant.label: own_figures(counts[variant], measured.get(variant, {}), number == FUSION_ALONE)
            for variant in variants
        }
        remarks = notes(number, {variant.label: options[variant] for variant in variants}, arguments)
        print(paper_table(number, own, remarks).render(arguments.format), end="\n\n", flush=True)


def own_rows(number: int) -> list[Variant]:
    """The paper's rows of a table, and before the last of them, with which all are compared, the registered modules."""
    *others, reference = table_variants(number)
    return [*others, *registered_variants(TABLES[number].key), reference]


def model_options(variant: Variant, arguments: argparse.Namespace) -> dict:
    """The arguments of a variant's network; the command line's size goes before its own."""
    size = {"dim": arguments.dim, "num_blocks": arguments.num_blocks and tuple(arguments.num_blocks)}
    return asdict(variant.config().model) | {key: value for key, value in size.items() if value}


def measure(network: Network, arguments: argparse.Namespace) -> dict[str, Figure]:
    """Time and memory of a training step and of one restored image; nothing where it takes too long or too much."""
    from benchmarks.measure import isolated
    from benchmarks.network import Case, run
    from engine.memory import GIB

    figures = {}
    for time, memory, case in (
        ("step s", "train GB", Case(True, arguments.batch, arguments.train_size, arguments.train_size)),
        ("test s", "test GB", Case(False, 1, *arguments.test_size)),
    ):
        size = network.options["dim"], network.options["num_blocks"]
        work = (network, *size, case, arguments.device, arguments.repeats)
        found = isolated(run, *work, device=arguments.device, limit=arguments.limit)
        if found:
            figures |= {time: found.seconds, memory: found.memory / GIB}
    return figures


def tables_by_module(counts: dict[str, Counts], size: int) -> list[Table]:
    """Parameters, and multiply-adds as computed here; a column for each variant."""
    from analysis.macs import WHOLE

    columns = [Column(name, 0, None) for name in counts]

    def line(label: str, numbers: list[int], unit: float = 1) -> Line:
        figures = [f"{many:,}" if unit == 1 else f"{many / unit:.3f}" for many in numbers]
        return Line(label, dict(zip(counts, figures, strict=True)), competes=False)

    all_counts = list(counts.values())
    modules = list(all_counts[0].parameters)
    parameters = [
        *(line(module, [one.parameters[module] for one in all_counts]) for module in modules),
        line("whole", [sum(one.parameters.values()) for one in all_counts]),
    ]
    macs = [
        *(line(module, [one.macs.of.get(module, 0) for one in all_counts], 1e9) for module in modules),
        line("whole", [one.macs.of[WHOLE] for one in all_counts], 1e9),
        line("of it state space modules", [one.state_space for one in all_counts], 1e9),
        line("of it selective scans", [one.macs.in_scans[WHOLE] for one in all_counts], 1e9),
        line("whole, layers as written", [one.written for one in all_counts], 1e9),
    ]
    return [
        Table("Parameters", columns, parameters),
        Table(
            f"GMACs at {size} x {size}",
            columns,
            macs,
            [
                "Multiply-adds of convolutions, matrix products and scans as they are computed here, in 10^9.",
                "Layers as written: each by itself as in the paper. Here KLFF convolves before it up-samples, with "
                "fewer multiply-adds; the numbers are the same.",
                "A scan counts 4 N + 3 = 67 multiply-adds per channel and step (SS2D's, without a gate, 66), no "
                "exponentials.",
            ],
        ),
    ]


def paper_table(number: int, own: dict[str, dict[str, Figure]], remarks: list[str]) -> Table:
    """The efficiency columns, the paper's rows first; in each group, ratios are to the last row."""
    papers = {row: figures for row, figures in paper_rows([number]).items() if row in TABLES[number].rows}
    lines = []
    for group, suffix in ((papers, PAPERS), (own, HERE)):
        *_, reference = group.values()
        lines += [
            Line(row + suffix, {column: cell(column, figures, reference) for column in COLUMNS[number]}, competes=False)
            for row, figures in group.items()
        ]
    columns = [Column(name, DIGITS.get(name, 2), False) for name in COLUMNS[number]]
    return Table(f"Table {number}. {TABLES[number].title}: efficiency", columns, lines, remarks)


def own_figures(counts: Counts, measured: dict[str, Figure], fusion_alone: bool) -> dict[str, Figure]:
    """A row's figures by column; none of ours is "train s"."""
    from analysis.macs import FUSIONS, WHOLE

    if fusion_alone:
        return {
            "GFLOPs": None if counts.fusion is None else counts.fusion / 1e9,
            "GMACs": sum(counts.macs.of.get(module, 0) for module in FUSIONS) / 1e9,
            "params (K)": sum(counts.parameters[module] for module in FUSIONS) / 1e3,
        }
    whole = {"params (M)": sum(counts.parameters.values()) / 1e6, "GMACs": counts.macs.of[WHOLE] / 1e9}
    return whole | dict.fromkeys(MEASURED, NOT_MEASURED) | measured


def cell(column: str, figures: Mapping[str, Figure], reference: Mapping[str, Figure]) -> Figure:
    """A figure, and in brackets its ratio to that of the reference row."""
    figure, unit = figures.get(column), reference.get(column)
    if not isinstance(figure, (int, float)):
        return figure
    text = f"{figure:.{DIGITS.get(column, 2)}f}"
    if figures is reference or not isinstance(unit, (int, float)) or not unit:
        return text
    return f"{text} ({figure / unit:.2f}x)"


def notes(number: int, options: dict[str, dict], arguments: argparse.Namespace) -> list[str]:
    """What must be said below a table whose own rows are networks of these options."""
    size = f"{arguments.size} x {arguments.size}"
    remarks = [
        "Rows marked (paper) are the paper's own figures, dim 48, not measured here. In brackets: the ratio to the "
        "last row's figure.",
        f"Rows marked (here): {described(options)}.",
    ]
    if number == FUSION_ALONE:
        return [
            *remarks,
            f"GFLOPs: both modules at {size}, the paper's at 256 x 256, as the paper counts: "
            "multiply-adds, all levels resized before they are convolved, biases and AFF's ReLU counted.",
            "GMACs: as computed here, KLFF convolving before it up-samples; without biases and ReLU.",
        ]
    remarks.append(f"GMACs: the whole network at {size} as computed here; the paper has none.")
    if not arguments.measure:
        return [*remarks, "Time and memory of (here) are measured with --measure; the paper's are one RTX 3090's."]
    import torch

    from engine import distributed
    from models.ops.selective_scan import resolve_backend

    side, (height, width) = arguments.train_size, arguments.test_size
    return [
        *remarks,
        f"(here): {distributed.describe(arguments.device)}, fp32, scan backend "
        f"{resolve_backend('auto', arguments.device)}, torch {torch.__version__}; (paper): one RTX 3090.",
        f"(here): training is one step, batch {arguments.batch}, {side} x {side}; test is one image of {width} x "
        f"{height}. GB: 2^30 bytes, above weights and image.",
        "The paper does not say what takes its train s (an epoch, perhaps), which batch its train GB are for, or "
        "how its memory is measured: compare the ratios in brackets.",
    ]


def described(options: dict[str, dict]) -> str:
    """The networks of these options: the default network's size, and in what each differs from it."""
    defaults = asdict(ModelConfig())
    differing = [
        f"{label}: " + " ".join(f"model.{key}={value}" for key, value in model.items() if value != defaults[key])
        for label, model in options.items()
        if model != defaults
    ]
    return "; ".join([f"dim {defaults['dim']}, blocks {', '.join(map(str, defaults['num_blocks']))}", *differing])


if __name__ == "__main__":
    sys.exit(main())
