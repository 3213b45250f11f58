"""The paper's Tables 1 to 4 with every run scored so far, and its Fig. 1.

    python -m analysis.tables
    python -m analysis.tables --format latex --output paper

Gathers every scores.json that evaluate.py has written below results/. Rows of different profiles never share a table,
and runs over a part of a test set, or restored by tiles, have tables of their own without the paper's rows. With
--format latex the figure is a PDF.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.figure import FigureError
from analysis.radar import draw_radar
from datasets.catalogue import DATA_SETS
from datasets.files import JsonError, read_json, write_atomic
from engine.evaluate.comparison import compare, differences
from engine.evaluate.table import FORMATS, Table
from metrics.catalogue import PROFILES

SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="where to look for scores.json (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for the tables and the radar figure (default RESULTS/tables)"
    )
    parser.add_argument("--format", default="text", choices=FORMATS)
    arguments = parser.parse_args(argv)
    from engine.console import readable_errors  # only here: --help needs no PyTorch

    with readable_errors():
        return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Write the tables and the figure of all finished evaluations."""
    output = arguments.output or arguments.results / "tables"
    if not arguments.results.is_dir():
        raise NotADirectoryError(f"--results {arguments.results}: no such folder")
    records = find_records(arguments.results)
    if not records:
        print(f"no finished evaluations in {arguments.results}: the paper's rows alone", file=sys.stderr)
    tables = make_tables(records)
    colours = arguments.format == "text" and sys.stdout.isatty()
    print("\n\n".join(table.render(arguments.format, colours) for table in tables))
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"tables.{SUFFIXES[arguments.format]}"
    write_atomic(file, "\n\n".join(table.render(arguments.format) for table in tables) + "\n")
    print(f"\ntables: {file}", file=sys.stderr)
    figure = output / ("radar.pdf" if arguments.format == "latex" else "radar.png")
    try:
        for remark in draw_radar(records, figure):
            print(remark, file=sys.stderr)
    except FigureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"figure: {figure}", file=sys.stderr)
    return 0


def find_records(results: Path) -> dict[str, dict]:
    """The record of every finished evaluation below a folder, by the folder of its images; others are named."""
    records = {}
    for path in sorted(results.rglob("scores.json")):
        record = {}
        try:
            record = read_json(path)
            complaint = what_is_wrong(record)
        except (JsonError, OSError) as error:
            complaint = f"no record of an evaluation ({error})"
        if complaint:
            print(f"left out: {path}: {complaint}", file=sys.stderr)
            continue
        folder = path.parent.relative_to(results).as_posix()
        name = path.parent.name
        label = (path.parent.relative_to(results).parent / (name.rpartition("_scores")[0] or name)).as_posix()
        records[label if label not in records else folder] = record
    return records


def what_is_wrong(record: dict) -> str | None:
    """Why a record is in no table; None for one that is."""
    if not all(isinstance(record.get(key), dict) for key in ("metrics", "images")):
        return "no record of an evaluation"
    if record.get("dataset") not in DATA_SETS or record.get("profile") not in PROFILES:
        return "unknown data set or profile"
    return None if record.get("complete") else "not finished; run the same evaluation again"


def make_tables(records: dict[str, dict]) -> list[Table]:
    """Tables 1 to 4 in the paper's profile, with the paper's rows, then what cannot be compared with these.

    That is, for each data set, runs over a part of it or by tiles, and runs of each other profile.
    """
    tables = []
    for profile in PROFILES:
        for dataset, data_set in DATA_SETS.items():
            chosen = {
                label: record
                for label, record in records.items()
                if (record["dataset"], record["profile"]) == (dataset, profile)
            }
            if profile != "paper" or data_set.table is None:
                tables += [compare(dataset, profile, chosen)] if chosen else []
                continue
            comparable = {label: record for label, record in chosen.items() if not differences(record)}
            tables.append(compare(dataset, profile, comparable))
            if partial := {label: record for label, record in chosen.items() if label not in comparable}:
                tables.append(compare(dataset, profile, partial, papers=False))
    return tables


if __name__ == "__main__":
    sys.exit(main())
