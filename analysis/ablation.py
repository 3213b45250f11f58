"""The quality columns of the paper's Tables 5 to 8: each row trained with several seeds, scored, and averaged.

    python -m analysis.ablation --table 5
    python -m analysis.ablation --table 5 --quick                       in miniature, in minutes on a CPU
    python -m analysis.ablation --variants mine,klff                    your own variants, beside the paper's rows
    python -m analysis.ablation --table 8 --niqe_model niqe_matlab.mat data.cache=memmap

The runs are trained and scored one after the other by the repository's own scripts, in results/JOB@SEED; the table is
written to results/ablation/. Finished runs are skipped and stopped ones continued. Runs are independent: to use several
GPUs, start the same command on each, for example with --seeds 1,2 and --seeds 3,4; a run that another command is at
work on is skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.variants import TABLES, add_variants_flag, find_variants, table_variants
from datasets.catalogue import DATA_SETS
from engine.config import results_dir
from engine.evaluate.table import FORMATS, Table

if TYPE_CHECKING:
    from analysis.runs import Run, TestSet
    from engine.schema import DataConfig

# Heavier modules are imported where they are used: --help needs no PyTorch.

FOLDER = results_dir("ablation")
SEEDS = (1, 2, 3, 4)  # as many as the paper's; it does not say which

# The miniature: seconds of training on synthetic blur over the sample photographs, and stand-ins for the test sets.
QUICK_SEEDS = (1, 2)
QUICK_DATA = FOLDER / "quick"
QUICK_PHOTOS = {"pairs_per_photo": 2, "size": 192, "strength": 5}
QUICK_FOLDERS = {
    "gopro": QUICK_DATA / "GoPro",
    "hide": QUICK_DATA / "HIDE",
    "rwbi": Path("datasets/samples_blurred"),
    "realblur_j": QUICK_DATA / "RealBlur_J",
}
QUICK_RECIPE = (
    "model.dim=8",
    "model.num_blocks=[1,1,1]",
    f"data.train={QUICK_FOLDERS['gopro']}",
    f"data.val={QUICK_FOLDERS['gopro']}",
    "data.patch_size=64",
    "data.batch_size=4",
    "data.workers=1",
    "loss.contrast_weight=0",
    "optim.lr=2e-3",
    "train.epochs=null",
    "train.iterations=60",
)
QUICK = (
    "--quick: miniature networks after seconds of training, on synthetic blur over the sample photographs. Their "
    "scores are not the paper's and say nothing about how the rows compare; only the procedure is the same."
)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from engine.console import readable_errors

    with readable_errors():
        return train_and_tabulate(arguments)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m analysis.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=int, choices=TABLES, help="of the paper; default with --variants: all of them")
    add_variants_flag(parser, "train these instead of the table's rows")
    parser.add_argument(
        "--quick", action="store_true", help="the whole procedure in miniature, on small data made here; no real scores"
    )
    parser.add_argument(
        "--seeds", type=seeds, metavar="N,N,…", help="default 1,2,3,4, as many as the paper's; with --quick 1,2"
    )
    parser.add_argument(
        "--niqe_model",
        default="live",
        metavar="live|FILE",
        help="as for evaluate.py; the paper's NIQE needs the file exported from MATLAB",
    )
    parser.add_argument("--format", default="text", choices=FORMATS, help="of the table (default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe of every run")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.table and not arguments.variants:
        parser.error("give --table, --variants or both")
    arguments.seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else SEEDS)
    from metrics.niqe import load_model

    try:
        load_model(arguments.niqe_model)  # now, not after days of training
    except (OSError, ValueError) as error:
        parser.error(f"--niqe_model: {error}")
    return arguments


def seeds(text: str) -> list[int]:
    return list(dict.fromkeys(map(int, text.split(","))))


def train_and_tabulate(arguments: argparse.Namespace) -> int:
    """Make the runs and print the table. Returns the exit code: 1 if runs are not finished."""
    from engine import distributed

    rows = make_runs(arguments)
    everything = [run for runs in zip(*rows.values(), strict=True) for run in runs]  # each row's first seed first
    if arguments.quick:
        print(QUICK, flush=True)
        make_quick_data()
    found: set[DataConfig] = set()
    for run in everything:
        run.check(found)
    test_sets, missing = find_test_sets(arguments)
    for reason in missing.values():
        print(f"not measured: {reason}", flush=True)
    if not arguments.quick and distributed.device().type == "cpu":
        print("no GPU: 3000 epochs take very long here; --quick is the miniature for a CPU", flush=True)

    unfinished = train_and_score(everything, list(test_sets.values()))

    tables = make_tables(arguments, rows, test_sets, missing)
    colours = arguments.format == "text" and sys.stdout.isatty()
    print("\n" + "\n\n".join(table.render(arguments.format, colours) for table in tables) + "\n")
    file = save_tables(arguments, tables)
    for name, reason in unfinished.items():
        print(f"{name} is not finished: {reason}")
    print(f"this table: {file}; its columns of time, memory, MACs and parameters: python -m analysis.complexity")
    return 1 if unfinished else 0


def make_runs(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of each row, in the order of the seeds."""
    from analysis.runs import Run

    variants = find_variants(arguments.variants) or table_variants(arguments.table)
    recipe, mark = (QUICK_RECIPE, "quick-") if arguments.quick else ((), "")
    return {
        variant.label: [
            Run(
                variant.run_name(f"{mark}{seed}"),
                (*recipe, *variant.overrides, *arguments.overrides, f"train.seed={seed}"),
                arguments.niqe_model,
            )
            for seed in arguments.seeds
        ]
        for variant in variants
    }


def make_quick_data() -> None:
    """GoPro's stand-in, and other blurs of the same held-out photographs for HIDE and RealBlur-J."""
    from datasets.synthesize import synthesize_photos
    from engine.demo import HELD_OUT, SAMPLES

    for seed, key in enumerate(("gopro", "hide", "realblur_j")):
        if not QUICK_FOLDERS[key].is_dir():
            synthesize_photos(
                SAMPLES, QUICK_FOLDERS[key], test_photos=HELD_OUT, seed=seed, progress=True, **QUICK_PHOTOS
            )


def find_test_sets(arguments: argparse.Namespace) -> tuple[dict[str, TestSet], dict[str, str]]:
    """The test sets of the tables' columns that are there, and why the others cannot be scored on."""
    from analysis.quality import quality_columns
    from analysis.runs import TestSet
    from datasets.layouts import LayoutError

    found, missing = {}, {}
    for key in quality_columns(_numbers(arguments)):
        try:
            found[key] = TestSet.find(key, QUICK_FOLDERS[key] if arguments.quick else None)
        except LayoutError as error:
            missing[key] = f"{DATA_SETS[key].title}: {error}"
    return found, missing


def train_and_score(runs: Sequence[Run], test_sets: Sequence[TestSet]) -> dict[str, str]:
    """Make the runs one after the other, until the user asks to stop; one run's failure does not stop the others.

    Returns: why, by the name of each run that is not finished.
    """
    from analysis.runs import Stopped, Unfinished

    unfinished: dict[str, str] = {}
    for number, run in enumerate(runs, start=1):
        print(f"\nrun {number} of {len(runs)}, {run.name}", flush=True)
        try:
            run.make(test_sets)
        except Unfinished as error:
            unfinished[run.name] = str(error)
            print(f"{run.name}: {error}", flush=True)
            if isinstance(error, Stopped):
                print("the same command continues from here", flush=True)
                return unfinished | {run.name: "not reached" for run in runs[number:]}
    return unfinished


def make_tables(
    arguments: argparse.Namespace, rows: dict[str, list[Run]], test_sets: dict[str, TestSet], missing: dict[str, str]
) -> list[Table]:
    """A table for each test set, of the scores that there are so far."""
    from analysis.quality import quality_columns, quality_table

    numbers = _numbers(arguments)
    name = f"Table {arguments.table}" if arguments.table else "Tables 5 to 8"
    subject = f" {TABLES[arguments.table].title}" if arguments.table else ""
    tables = []
    for key in quality_columns(numbers):
        records = {
            label: [record for run in runs if key in test_sets and (record := run.record(test_sets[key]))]
            for label, runs in rows.items()
        }
        remarks = [*([QUICK] if arguments.quick else []), *([missing[key]] if key in missing else [])]
        title = f"{name}, {DATA_SETS[key].title}.{subject}"
        tables.append(
            quality_table(title, numbers, key, records, arguments.niqe_model, remarks, full=not arguments.quick)
        )
    return tables


def save_tables(arguments: argparse.Namespace, tables: Iterable[Table]) -> Path:
    """Write the tables to results/ablation/; those of other rows or of --quick have other names."""
    from analysis.tables import SUFFIXES
    from datasets.files import write_atomic

    table = [f"table{arguments.table}"] if arguments.table else []
    parts = [*table, *(["variants"] if arguments.variants else []), *(["quick"] if arguments.quick else [])]
    file = FOLDER / f"{'_'.join(parts)}.{SUFFIXES[arguments.format]}"
    write_atomic(file, "\n\n".join(table.render(arguments.format) for table in tables) + "\n")
    return file


def _numbers(arguments: argparse.Namespace) -> list[int]:
    """The paper's tables whose columns and rows are printed."""
    return [arguments.table] if arguments.table else list(TABLES)


if __name__ == "__main__":
    sys.exit(main())
