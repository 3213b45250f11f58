"""The quality columns of the paper's Tables 5 to 8: each row trained with four seeds, scored, and averaged.

    python -m analysis.ablation --table 5
    python -m analysis.ablation --table 5 --quick                       in miniature, in minutes on a CPU
    python -m analysis.ablation --table 8 --niqe_model niqe_matlab.mat data.cache=memmap

A row is a recipe in configs/ablation/; its runs are trained and scored by the ordinary scripts and lie in
results/ablation/ROW@SEED, the table in results/ablation/. The same command again goes on after a kill at any moment.
Several GPUs are used side by side, one run a GPU, of those that CUDA_VISIBLE_DEVICES names. Tables share their last
row's runs (ablation/xyscan), also while they are made at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from analysis.runs import Pool, Run, ScoredSet, devices
from analysis.tables import SUFFIXES
from datasets.files import write_atomic
from datasets.layouts import LayoutError
from datasets.synthesize import synthesize_photos
from engine.config import results_dir
from engine.console import readable_errors
from engine.demo import HELD_OUT, SAMPLES
from engine.evaluate.comparison import OWN_NAMES, PAPERS, differences, digits, notes
from engine.evaluate.registry import DATA_SETS, MEASURES
from engine.evaluate.table import FORMATS, NOT_MEASURED, Column, Line, Table
from metrics.niqe import load_model
from metrics.paper import paper_table

FOLDER = results_dir("ablation")
SEEDS = (1, 2, 3, 4)  # as many as the paper's; it does not say which


@dataclass(frozen=True)
class Ablation:
    """One of the paper's tables. paper: its key in metrics/paper_numbers.yaml; rows: the paper's word -> recipe."""

    title: str
    paper: str
    rows: dict[str, str]


TABLES = {
    5: Ablation("The vision state space module", "ablation_vssm", {"MambaIR": "ss2d", "XYScanNet-S": "xyscan"}),
    6: Ablation(
        "One direction or both", "ablation_scan", {"bidirectional": "bidirectional", "unidirectional": "xyscan"}
    ),
    7: Ablation(
        "Which slices are scanned", "ablation_slices", {"inter": "inter", "intra": "intra", "intra and inter": "xyscan"}
    ),
    8: Ablation("Cross-level feature fusion", "ablation_fusion", {"none": "no_fusion", "AFF": "aff", "KLFF": "xyscan"}),
}
FOLDERS = {
    "gopro": Path("datasets/GoPro"),
    "hide": Path("datasets/HIDE"),
    "rwbi": Path("datasets/RWBI"),
    "realblur_j": Path("datasets/RealBlur_J"),
}

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
    "quality columns are not the paper's and say nothing of how the rows compare; only the path is the same."
)


class Mean(float):
    """A mean over seeds; where there are several it prints with their standard deviation (of a sample, n - 1)."""

    deviation: float | None

    def __new__(cls, values: Sequence[float]) -> Mean:
        mean = super().__new__(cls, statistics.fmean(values))
        mean.deviation = statistics.stdev(values) if len(values) > 1 else None
        return mean

    def __format__(self, spec: str) -> str:
        text = super().__format__(spec)
        return text if self.deviation is None else f"{text} ± {self.deviation:{spec}}"


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with readable_errors():
        return run(arguments)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m analysis.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=int, required=True, choices=TABLES, help="of the paper")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the whole path in miniature, on small data made here; its scores mean nothing",
    )
    parser.add_argument(
        "--seeds",
        type=numbers,
        metavar="N,N,…",
        help=f"of the runs (default {commas(SEEDS)}; with --quick {commas(QUICK_SEEDS)})",
    )
    parser.add_argument(
        "--niqe_model",
        default="live",
        metavar="live|FILE",
        help="as of evaluate.py; the paper's NIQE needs the file exported from MATLAB",
    )
    parser.add_argument("--format", default="text", choices=FORMATS, help="of the table (default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe of every run")
    arguments = parser.parse_intermixed_args(argv)
    try:
        load_model(arguments.niqe_model)  # now, not after days of training
    except (OSError, ValueError) as error:
        parser.error(f"--niqe_model: {error}")
    arguments.seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else SEEDS)
    return arguments


def numbers(text: str) -> list[int]:
    """--seeds's value, each number once."""
    return list(dict.fromkeys(map(int, text.split(","))))


def commas(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def run(arguments: argparse.Namespace) -> int:
    """Makes the runs of a table and prints it; the exit code: 1 where runs are not finished."""
    table = TABLES[arguments.table]
    runs = make_runs(table, arguments)
    everything = [one for row in runs.values() for one in row]
    for one in everything:
        one.check()

    # The data.
    if arguments.quick:
        print(QUICK, flush=True)
        make_quick_data()
    for one in everything:
        if not one.is_trained():
            one.check_data()
    sets, missing = find_sets(columns_of(table), QUICK_FOLDERS if arguments.quick else FOLDERS)
    for reason in missing.values():
        print(f"not measured: {reason}")
    if not (arguments.quick or torch.cuda.is_available()):
        print("no CUDA device: 3000 epochs take very long here; --quick is the miniature for a CPU")

    # The runs: all rows with the first seed first, so that there is soon something to compare.
    by_seed = [row[k] for k in range(len(arguments.seeds)) for row in runs.values()]
    unfinished = Pool(by_seed, list(sets.values()), devices()).make()

    # The table.
    parts = make_tables(arguments, runs, sets, missing)
    colours = arguments.format == "text" and sys.stdout.isatty()
    print("\n" + "\n\n".join(part.render(arguments.format, colours) for part in parts) + "\n")
    file = FOLDER / f"table{arguments.table}{'_quick' if arguments.quick else ''}.{SUFFIXES[arguments.format]}"
    write_atomic(file, "\n\n".join(part.render(arguments.format) for part in parts) + "\n")
    for name, reason in unfinished.items():
        print(f"{name} is not finished: {reason}")
    print(f"this table: {file}; its columns of time, memory, MACs and parameters: python -m analysis.complexity")
    return 1 if unfinished else 0


def make_runs(table: Ablation, arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of each row, by the paper's word for it, in the order of the seeds."""
    recipe, mark = (QUICK_RECIPE, "quick-") if arguments.quick else ((), "")
    return {
        word: [
            Run(f"ablation/{job}@{mark}{seed}", seed, (*recipe, *arguments.overrides), arguments.niqe_model)
            for seed in arguments.seeds
        ]
        for word, job in table.rows.items()
    }


def make_quick_data() -> None:
    """GoPro's stand-in, and other shakes of the same held-out photographs for those of HIDE and RealBlur-J."""
    for seed, key in enumerate(("gopro", "hide", "realblur_j")):
        if not QUICK_FOLDERS[key].is_dir():
            synthesize_photos(
                SAMPLES, QUICK_FOLDERS[key], test_photos=HELD_OUT, seed=seed, progress=True, **QUICK_PHOTOS
            )


def find_sets(keys: Iterable[str], folders: dict[str, Path]) -> tuple[dict[str, ScoredSet], dict[str, str]]:
    """The data sets that are there, and why the others cannot be scored on."""
    sets, missing = {}, {}
    for key in keys:
        try:
            sets[key] = ScoredSet.find(key, folders[key])
        except LayoutError as error:
            missing[key] = f"{DATA_SETS[key].title}: {error}"
    return sets, missing


# The table


def columns_of(table: Ablation) -> dict[str, list[str]]:
    """The paper's words for the scores in a table's columns, by data set; its other columns are no scores."""
    keys = {data_set.title: key for key, data_set in DATA_SETS.items()}
    columns: dict[str, list[str]] = {}
    for column in next(iter(paper_table(table.paper).values())):
        title, _, word = column.rpartition(" ")
        if title in keys and word in OWN_NAMES:
            columns.setdefault(keys[title], []).append(word)
    return columns


def make_tables(
    arguments: argparse.Namespace, runs: dict[str, list[Run]], sets: dict[str, ScoredSet], missing: dict[str, str]
) -> list[Table]:
    """A table for each data set in the paper's: the scores there are so far, each row under the paper's."""
    table, parts = TABLES[arguments.table], []
    for key, words in columns_of(table).items():
        names = {OWN_NAMES[word] for word in words}
        if "NIQE" in words and arguments.niqe_model == "live":
            names.add("niqe_live")
        records = {
            word: [record for one in row if key in sets and (record := one.record(sets[key]))]
            for word, row in runs.items()
        }
        lines = []
        for word, figures in paper_table(table.paper).items():
            paper = {OWN_NAMES[score]: figures[f"{DATA_SETS[key].title} {score}"] for score in words}
            lines.append(Line(word + PAPERS, paper, competes=word in records))
            if word in records:
                lines.append(own_line(word, records[word], names, arguments.quick))
        columns = [
            Column(name, digits(name, lines), measure.higher_is_better)
            for name, measure in MEASURES.items()
            if name in names
        ]
        remarks = [missing[key]] if key in missing else remarks_on(records, names)
        title = f"Table {arguments.table}, {DATA_SETS[key].title}. {table.title}"
        parts.append(Table(title, columns, lines, [*([QUICK] if arguments.quick else []), *remarks]))
    return parts


def own_line(label: str, records: list[dict], names: set[str], quick: bool) -> Line:
    """A row of ours; it competes with the paper's where it is of as many runs, over the same images."""
    figures = {}
    for name in names:
        values = [record["metrics"][name]["value"] for record in records if "value" in record["metrics"].get(name, {})]
        figures[name] = Mean(values) if values else NOT_MEASURED
    competes = len(records) >= len(SEEDS) and not quick and not any(map(differences, records))
    return Line(label, figures, competes)


def remarks_on(records: dict[str, list[dict]], names: set[str]) -> list[str]:
    """What must be said under a table, each text once."""
    remarks = {}
    for label, found in records.items():
        if len(found) < len(SEEDS):
            remarks[f"{label}: runs finished and scored: {len(found)}, the paper's: {len(SEEDS)}."] = None
        for record in found:
            metrics = {name: score for name, score in record["metrics"].items() if name in names}
            remarks |= dict.fromkeys(notes(names, "paper", {label: record | {"metrics": metrics}}))
    return list(remarks)


if __name__ == "__main__":
    sys.exit(main())
