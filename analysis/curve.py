"""Training curves: loss and validation PSNR over the steps of both stages.

    python -m analysis.curve xyscannet_t
    python -m analysis.curve xyscannet_t demo --output curves.png

Read from the TensorBoard logs in results/JOB/logs. Stage 2 follows stage 1. The loss is averaged over windows of 2 % of
the run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

from analysis.figure import COLOURS, check_name, new_figure, save
from analysis.inputs import InputError
from engine.config import results_dir

LOSS, PSNR = "train/loss", "validation/psnr"
SMOOTHING = 50  # the loss is averaged over windows of the run's length divided by this
Series = list[tuple[int, float]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="job names, results/JOB")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="PNG, PDF or SVG (default results/JOB/curve.png, of the first job)"
    )
    arguments = parser.parse_args(argv)
    from engine.console import readable_errors  # only here: --help needs no PyTorch

    with readable_errors():
        output = arguments.output or results_dir(arguments.jobs[0]) / "curve.png"
        check_name(output)
        draw({job: read_run(results_dir(job) / "logs") for job in arguments.jobs}, output)
    print(output)
    return 0


def read_run(logs: Path) -> dict[str, list[Series]]:
    """LOSS and PSNR -> (step, value) for each stage; the steps of stage 2 are counted from the end of stage 1.

    Raises:
        InputError: nothing was logged.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns about every resumed run
    run: dict[str, list[Series]] = {LOSS: [], PSNR: []}
    before = 0
    for folder in sorted(logs.glob("stage[12]")):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        there = events.Tags()["scalars"]
        points = {name: events.Scalars(name) if name in there else [] for name in run}
        if not points[LOSS]:
            continue
        for name, stages in run.items():
            stages.append([(before + point.step, point.value) for point in points[name]])
        before = run[LOSS][-1][-1][0]
    if not run[LOSS]:
        raise InputError(f"{logs}: no training has been logged there")
    return run


def smoothed(series: Series) -> Series:
    """Means over windows of neighbouring points, SMOOTHING windows in all."""
    width = max(1, len(series) // SMOOTHING)
    points = np.array(series[: len(series) // width * width]).reshape(-1, width, 2)
    return [tuple(point) for point in points.mean(axis=1)]


def draw(runs: dict[str, dict[str, list[Series]]], path: Path) -> None:
    """One panel for the loss, one for the PSNR if any run was validated; a line for each run, broken between stages."""
    validated = any(series for run in runs.values() for series in run[PSNR])
    figure = new_figure(5.2 * (1 + validated), 3.4)
    axes = figure.subplots(1, 1 + validated, squeeze=False)
    for colour, (job, run) in zip(COLOURS * len(runs), runs.items(), strict=False):
        for axis, name in zip(axes[0], (LOSS, PSNR), strict=False):
            for k, series in enumerate(filter(None, run[name])):
                steps, values = zip(*(smoothed(series) if name == LOSS else series), strict=True)
                axis.plot(steps, values, "-" if name == LOSS else ".-", color=colour, label=None if k else job)
            for stage in run[LOSS][1:]:
                axis.axvline(stage[0][0], color="0.6", linestyle=":", linewidth=1)
    for axis, label in zip(axes[0], ("training loss", "validation PSNR (dB)"), strict=False):
        axis.set_xlabel("step (dotted: stage 2 begins)" if any(len(run[LOSS]) > 1 for run in runs.values()) else "step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
