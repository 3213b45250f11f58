"""Parameters and multiply-adds of every variant by module, and the efficiency columns of the paper's Tables 5 to 8.

    python -m analysis.complexity                           counts alone: seconds on a CPU
    python -m analysis.complexity --table 8 --format latex
    python -m analysis.complexity --measure --batch 4       time and memory too, on the device at hand

--measure times a training step and one restored image of each variant, fp32, each in a process of its own: the median
of --repeats runs after one to warm up, and what memory rose above weights and image. How multiply-adds are counted:
analysis/macs.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from analysis.ablation import TABLES
from analysis.efficiency import FUSIONS, VARIANTS, Counted, Efficiency, Protocol, count_variant, measure_variants
from analysis.macs import WHOLE
from benchmarks.network import Case
from engine import distributed
from engine.console import readable_errors
from engine.evaluate.comparison import PAPERS
from engine.evaluate.table import FORMATS, NOT_MEASURED, Column, Figure, Line, Table
from engine.memory import GIB
from metrics.paper import paper_table
from models.ops.selective_scan import resolve_backend

MODULES = "modules"  # the tables by module
HERE = " (here)"
DIGITS = {
    "params (M)": 2,
    "params (K)": 2,
    "GFLOPs": 2,
    "GMACs": 2,
    "train s": 0,
    "step s": 3,
    "train GB": 2,
    "test s": 3,
    "test GB": 2,
}
# Of TABLES' columns those that are measured or counted; "step s" and "GMACs" are no columns of the paper's.
COLUMNS = {
    5: ("params (M)", "GMACs", "train s", "step s", "train GB", "test s", "test GB"),
    6: ("GMACs", "train GB", "test GB"),
    7: ("GMACs", "train s", "step s", "train GB", "test s", "test GB"),
    8: ("GFLOPs", "GMACs", "params (K)"),
}
FUSION_ALONE = 8


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with readable_errors():
        run(arguments)
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Counts, measures what is asked for, and prints the tables."""
    numbers = [number for number in TABLES if str(number) in arguments.table]
    rows = {variant for number in numbers for variant in TABLES[number].rows.values()}
    wanted = [name for name in VARIANTS if MODULES in arguments.table or name in rows]
    counted = {
        name: count_variant(name, arguments.dim, arguments.num_blocks, arguments.size)
        for name in tqdm(wanted, desc="counting", leave=False, disable=None)
    }
    if MODULES in arguments.table:
        for table in tables_by_module(counted, arguments):
            show(table, arguments.format)

    measured: dict[str, Efficiency] = {}
    for number in numbers:  # each is printed before the next one's rows are measured, which takes long
        if arguments.measure and number != FUSION_ALONE:
            names = [name for name in TABLES[number].rows.values() if name not in measured]
            measured |= measure_variants(names, arguments.dim, arguments.num_blocks, protocol(arguments))
        show(papers_table(number, counted, measured, arguments), arguments.format)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = (MODULES, *map(str, TABLES))
    parser.add_argument("--table", nargs="+", default=choices, choices=choices, help="default: all")
    parser.add_argument("--dim", type=int, default=48, help="the network's channels (default %(default)s, the paper's)")
    parser.add_argument("--num_blocks", type=int, nargs=3, default=[3, 3, 6], metavar="N", help="default 3 3 6")
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
    if arguments.dim < 2 or arguments.dim % 2 or min(arguments.num_blocks) < 1:
        parser.error(f"--dim must be even and --num_blocks positive, got {arguments.dim}, {arguments.num_blocks}")
    if arguments.size < 8 or arguments.size % 4:
        parser.error(f"--size must be a multiple of 4 from 8 on, got {arguments.size}")
    if min(arguments.train_size, *arguments.test_size) < 8 or min(arguments.batch, arguments.repeats) < 1:
        parser.error("--train_size and --test_size start at 8 pixels, --batch and --repeats at 1")
    try:
        arguments.device = distributed.device(arguments.device)
    except (RuntimeError, ValueError) as error:
        parser.error(f"--device: {error}")
    return arguments


def protocol(arguments: argparse.Namespace) -> Protocol:
    side = arguments.train_size
    return Protocol(
        Case(True, arguments.batch, side, side),
        Case(False, 1, *arguments.test_size),
        arguments.device,
        arguments.repeats,
        arguments.limit,
    )


def tables_by_module(counted: dict[str, Counted], arguments: argparse.Namespace) -> list[Table]:
    """Parameters, and multiply-adds as computed here; a column a variant."""
    columns = [Column(name, 0, None) for name in counted]

    def line(label: str, number: Callable[[Counted], int], unit: float = 1) -> Line:
        numbers = {name: number(one) for name, one in counted.items()}
        return Line(
            label,
            {name: f"{many:,}" if unit == 1 else f"{many / unit:.3f}" for name, many in numbers.items()},
            competes=False,
        )

    modules = list(next(iter(counted.values())).parameters)
    parameters = [
        *(line(module, lambda one, module=module: one.parameters[module]) for module in modules),
        line("whole", lambda one: sum(one.parameters.values())),
    ]
    macs = [
        *(line(module, lambda one, module=module: one.macs.of.get(module, 0), 1e9) for module in modules),
        line("whole", lambda one: one.macs.of[WHOLE], 1e9),
        line("of it state space modules", lambda one: one.state_space, 1e9),
        line("of it selective scans", lambda one: one.macs.in_scans[WHOLE], 1e9),
        line("whole, layers as written", lambda one: one.written, 1e9),
    ]
    network = size_in_words(arguments)
    return [
        Table(
            f"Parameters, {network}",
            columns,
            parameters,
            ["Columns are jobs of configs/ablation/. kl_gate changes neither table."],
        ),
        Table(
            f"GMACs at {arguments.size} x {arguments.size}, {network}",
            columns,
            macs,
            [
                "Multiply-adds of convolutions, matrix products and scans as they are computed here, in 10^9.",
                "Layers as written: each by itself as the paper writes them. Here S6's projections are multiplied into "
                "the 1x1 convolutions around them (more multiply-adds in fewer passes) and KLFF convolves before it "
                "up-samples (fewer); the numbers are the same.",
                "A scan counts 4 N + 3 = 67 multiply-adds a channel and step (SS2D's, without a gate, 66), no "
                "exponentials.",
            ],
        ),
    ]


def papers_table(
    number: int, counted: dict[str, Counted], measured: dict[str, Efficiency], arguments: argparse.Namespace
) -> Table:
    """The efficiency columns, the paper's rows first; the last row of each is what the others are compared with."""
    table = TABLES[number]
    papers = {row: paper_table(table.paper)[row] for row in table.rows}
    ours = {row: own_figures(variant, counted, measured, number == FUSION_ALONE) for row, variant in table.rows.items()}
    lines = []
    for group, suffix in ((papers, PAPERS), (ours, HERE)):
        *_, reference = group.values()
        lines += [
            Line(row + suffix, {column: cell(column, figures, reference) for column in COLUMNS[number]}, competes=False)
            for row, figures in group.items()
        ]
    columns = [Column(name, DIGITS[name], False) for name in COLUMNS[number]]
    return Table(f"Table {number}. {table.title}: efficiency", columns, lines, notes(number, arguments))


def own_figures(
    variant: str, counted: dict[str, Counted], measured: dict[str, Efficiency], fusion_alone: bool
) -> dict[str, Figure]:
    """A row's figures by column; "train s" is none of ours."""
    one = counted[variant]
    if fusion_alone:
        return {
            "GFLOPs": one.fusion / 1e9,
            "GMACs": sum(one.macs.of.get(module, 0) for module in FUSIONS) / 1e9,
            "params (K)": sum(one.parameters[module] for module in FUSIONS) / 1e3,
        }
    figures = {"params (M)": sum(one.parameters.values()) / 1e6, "GMACs": one.macs.of[WHOLE] / 1e9}
    train, test = measured.get(variant) or (None, None)
    return figures | {
        "step s": train.seconds if train else NOT_MEASURED,
        "train GB": train.memory / GIB if train else NOT_MEASURED,
        "test s": test.seconds if test else NOT_MEASURED,
        "test GB": test.memory / GIB if test else NOT_MEASURED,
    }


def cell(column: str, figures: dict[str, Figure], reference: dict[str, Figure]) -> Figure:
    """A figure, and in brackets how many times that of the reference row it is."""
    figure, unit = figures.get(column), reference.get(column)
    if not isinstance(figure, (int, float)):
        return figure
    text = f"{figure:.{DIGITS[column]}f}"
    if figures is reference or not isinstance(unit, (int, float)) or not unit:
        return text
    return f"{text} ({figure / unit:.2f}x)"


def notes(number: int, arguments: argparse.Namespace) -> list[str]:
    """What must be said under a table."""
    keys = [
        f"{row}: " + " ".join(f"model.{key}={value}" for key, value in VARIANTS[variant].items())
        for row, variant in TABLES[number].rows.items()
        if VARIANTS[variant]
    ]
    size = f"{arguments.size} x {arguments.size}"
    remarks = [
        "Rows marked (paper) are the paper's own figures, dim 48, not measured here. In brackets: how many "
        "times the last row's figure.",
        f"Rows marked (here): {size_in_words(arguments)}; {'; '.join(keys)}.",
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
    side, (height, width) = arguments.train_size, arguments.test_size
    return [
        *remarks,
        f"(here): {distributed.describe(arguments.device)}, fp32, scan backend "
        f"{resolve_backend('auto', arguments.device)}, torch {torch.__version__}; (paper): one RTX 3090.",
        f"(here): training is one step, batch {arguments.batch}, {side} x {side}; test is one image of {width} x "
        f"{height}. GB: 2^30 bytes, above weights and image.",
        "The paper does not say what takes its train s (an epoch, perhaps), which batch its train GB are for, or "
        "how its memory is measured: compare the factors in brackets.",
    ]


def size_in_words(arguments: argparse.Namespace) -> str:
    return f"dim {arguments.dim}, blocks {', '.join(map(str, arguments.num_blocks))}"


def show(table: Table, form: str) -> None:
    print(table.render(form), end="\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
