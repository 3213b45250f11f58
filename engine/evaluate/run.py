"""Scores a folder of restored images with every metric of the paper, beside the paper's figures.

results/J/images_scores/scores.csv     each image's scores, written as they are made: a stopped run goes on there
results/J/images_scores/scores.json    the means; exact names, models and backbones with checksums, versions, image
                                       counts, and what made the images
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from tqdm import tqdm

from datasets.files import write_atomic
from metrics.downloads import DownloadError, sha256
from metrics.fid import inception
from metrics.niqe import LIVE_MODEL, load_model

from .. import distributed, provenance
from ..config import ConfigError, results_dir
from .command import Request
from .comparison import compare
from .pairing import Pairing, Sample, find_samples, listed
from .per_image import Task, load_network, score_in_processes, score_on_gpu
from .registry import ALIGNED, MEASURES, NETWORKS, PAIRWISE, column_names, data_set
from .set_level import SetScores
from .store import Measurements, stamp

REFERENCE_FREE = ("niqe_live", "niqe_matlab")
PER_IMAGE = (*PAIRWISE, *ALIGNED, *REFERENCE_FREE, *NETWORKS)


class EvaluationError(ConfigError):
    """What is asked for cannot be scored; the message says why and what to do."""


def evaluate(request: Request) -> dict:
    """Scores the images, writes scores.csv and scores.json, prints the table; returns what scores.json holds.

    Raises EvaluationError or another of this repository's errors; before anything is measured, where it can.
    """
    # What to score: everything that is wrong with the images is said first.
    columns = wanted_columns(request)
    pairing = find_samples(
        request.restored,
        list(request.truth),
        data_set(request.dataset).variant,
        sharp_needed=bool(set(columns) - set(REFERENCE_FREE)),
    )
    accept(pairing, request)
    device = distributed.device(request.device)

    # With what: a network that cannot be had costs its own column alone.
    how, missing = how_measured(columns, request, device)
    record = describe(request, pairing, device) | {
        "complete": False,
        "metrics": {name: {"how": how[name]} for name in columns if name in how},
    }
    measurements = open_measurements(request.folder, pairing, record)
    measurements.begin([name for name in columns if name in PER_IMAGE and name in how])
    write_record(request.folder, record)

    # Measure.
    how_sets = {name: facts for name, facts in how.items() if name not in PER_IMAGE}
    sets = SetScores(pairing.samples, how_sets, device, request.folder)
    with progress_bar(steps(measurements, len(pairing.samples), device) + sets.steps) as bar:
        measure_images(measurements, pairing.samples, request, device, bar)
        set_scores = sets.measure(bar)

    # Report.
    measurements.write()
    scores = {name: {"not_measured": why} for name, why in missing.items()}
    scores |= image_means(measurements) | set_scores
    record |= {"complete": True, "metrics": {name: {**scores[name], "how": how.get(name)} for name in columns}}
    write_record(request.folder, record)
    report(request, record)
    return record


def wanted_columns(request: Request) -> list[str]:
    """The exact names of the scores that the request asks for. Raises EvaluationError for what cannot be had."""
    flags = request.metrics or data_set(request.dataset).flags
    columns = column_names(flags, request.profile, request.niqe_model)
    if request.dataset == "rwbi" and set(columns) - set(REFERENCE_FREE):
        raise EvaluationError("RWBI has no sharp images: niqe is all that can be measured on it")
    return columns


def accept(pairing: Pairing, request: Request) -> None:
    """Raises EvaluationError where images cannot be scored, unless partial scores are asked for; and where a restored
    image is the very file that it is to be compared with, which says nothing."""
    sharp = {(file.st_dev, file.st_ino) for sample in pairing.samples if sample.sharp for file in [sample.sharp.stat()]}
    same = [
        sample.name
        for sample in pairing.samples
        for file in [sample.restored.stat()]
        if (file.st_dev, file.st_ino) in sharp
    ]
    if same:
        raise EvaluationError(
            f"--pred and --gt: {len(same)} restored images are the sharp ones themselves, the first "
            f"{same[0]}; nothing was scored. Name the restored images with --pred"
        )
    complaints = pairing.complaints()
    if complaints and (not request.partial or not pairing.samples):
        advice = "" if not pairing.samples else "\nNothing was scored. --partial scores the others, and says so"
        raise EvaluationError(f"{request.restored} and the data set do not match:\n{complaints}{advice}")
    if complaints:
        print(f"left out:\n{complaints}", file=sys.stderr)
    if pairing.by_ending:
        print(
            f"paired by the end of their names, {len(pairing.by_ending)} images:{listed(pairing.by_ending, 2)}",
            file=sys.stderr,
        )


def how_measured(columns: list[str], request: Request, device: torch.device) -> tuple[dict[str, dict], dict[str, str]]:
    """What decides each score's value: definition, versions, model with checksum. And for scores that cannot be
    measured here, why. Raises EvaluationError for a file that is no model."""
    how, missing = {}, {}
    for name in columns:
        if name not in PER_IMAGE and (before := next((other for other in missing if other not in PER_IMAGE), None)):
            missing[name] = missing[before]  # the same network: a download is not waited for twice
            continue
        facts = {"definition": MEASURES[name].definition, "numpy": np.__version__, "opencv": cv2.__version__}
        try:
            if name in NETWORKS:
                facts |= {
                    "backbone": load_network(name, str(device)).backbone,
                    "torch": torch.__version__,
                    "device": device.type,
                }
            elif name in REFERENCE_FREE:
                load_model(request.niqe_model)
                file = LIVE_MODEL if request.niqe_model == "live" else Path(request.niqe_model)
                facts["model"] = {"file": file.name, "sha256": sha256(file)}
            elif name not in PER_IMAGE:
                facts |= how_sets_are_scored(device)
        except DownloadError as error:
            missing[name] = str(error)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        else:
            how[name] = facts
    return how, missing


def how_sets_are_scored(device: torch.device) -> dict[str, object]:
    """Raises DownloadError where Inception cannot be had."""
    return {"backbone": inception(str(device)).backbone, "torch": torch.__version__, "device": device.type}


def describe(request: Request, pairing: Pairing, device: torch.device) -> dict:
    """What the record says of the run apart from its scores."""
    return {
        "dataset": request.dataset,
        "profile": request.profile,
        "restored": str(request.restored.resolve()),
        "truth": [str(folder.resolve()) for folder in request.truth],
        "images": {
            "data_set": len(pairing.samples) + len(pairing.missing) + len(pairing.wrong_shape),
            "scored": len(pairing.samples),
            "missing": pairing.missing,
            "extra": pairing.extra,
            "wrong_shape": pairing.wrong_shape,
            "suffixes": dict(Counter(sample.restored.suffix.lower() for sample in pairing.samples)),
        },
        "made_by": (made_by := what_made(request.restored)),
        "config": config_of(made_by),
        "scored": "saved 8-bit RGB values, one image at a time, then averaged",
        "device": str(device),
        "git": provenance.git_hash(),
        "versions": provenance.versions(),
    }


def what_made(restored: Path) -> dict | None:
    """The predictor's record of the images, without its results; None where there is none."""
    path = Path(f"{restored}.json")
    if not path.is_file():
        return None
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: not a record of a prediction ({error}); remove it, or predict again") from error
    record.pop("results", None)
    return record


def config_of(made_by: dict | None) -> dict | None:
    """The recipe that trained the weights, where the weights lie in the job that the recipe is of."""
    if not made_by or not {"job_name", "weights"} <= made_by.keys():
        return None
    folder, weights = results_dir(made_by["job_name"]), Path(made_by["weights"])
    path = folder / f"config_{weights.stem.rpartition('_')[2]}.yaml"  # best_XYScanNet_stage2 -> config_stage2
    if folder.resolve() not in weights.resolve().parents or not path.is_file():
        return None
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def open_measurements(folder: Path, pairing: Pairing, record: dict) -> Measurements:
    """What an earlier run has measured of the same files in the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        earlier = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["metrics"]
        keep = [
            name for name, score in earlier.items() if score.get("how") == record["metrics"].get(name, score).get("how")
        ]
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        keep = []  # without a record there is nothing to say how the scores came about
    stamps = {sample.name: stamp(sample.restored, sample.sharp) for sample in pairing.samples}
    return Measurements(folder / "scores.csv", stamps, keep)


def progress_bar(steps: int) -> tqdm:
    return tqdm(total=steps, desc="scoring", unit="image", mininterval=0.1 if sys.stderr.isatty() else 30)


def measure_images(
    measurements: Measurements, samples: list[Sample], request: Request, device: torch.device, bar: tqdm
) -> None:
    """Measures what is missing, image by image, and writes it down as it comes."""
    on_gpu = NETWORKS if device.type == "cuda" else ()
    for gpu in (False, True):
        columns = [name for name in measurements.wanted if (name in on_gpu) == gpu]
        tasks: list[Task] = [
            (sample, lacking) for sample in samples if (lacking := measurements.missing(sample.name, columns))
        ]
        if columns:
            bar.update(len(samples) - len(tasks))
        if not tasks:
            continue
        results = (
            score_on_gpu(tasks, device)
            if gpu
            else score_in_processes(tasks, request.niqe_model, request.workers or cores())
        )
        for name, scores in results:
            measurements.add(name, scores)
            bar.update()


def steps(measurements: Measurements, images: int, device: torch.device) -> int:
    """How often measure_images moves the bar: a GPU's networks pass over the images once more."""
    in_batches = [name in NETWORKS and device.type == "cuda" for name in measurements.wanted]
    return images * len(set(in_batches))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_means(measurements: Measurements) -> dict[str, dict]:
    """Means over the images; those that a score cannot be had of are named and left out."""
    means = {}
    for column in measurements.wanted:
        scores = {name: row[column] for name, row in sorted(measurements.scores.items())}
        failed = {name: score for name, score in scores.items() if isinstance(score, str)}
        values = [score for score in scores.values() if not isinstance(score, str)]
        if values:
            means[column] = {"value": statistics.fmean(values), "images": len(values), "failed": failed}
        else:
            means[column] = {"not_measured": f"of no image, the first because: {next(iter(failed.values()))}"}
    return means


def write_record(folder: Path, record: dict) -> None:
    write_atomic(folder / "scores.json", json.dumps(record, indent=2) + "\n")


def report(request: Request, record: dict) -> None:
    table = compare(request.dataset, request.profile, {"this run": record})
    if set(record["images"]["suffixes"]) - {".png"}:
        table.notes.append("The restored images are not all PNG: what lossy files lost counts as the network's fault.")
    print(f"\n{table.render(request.form, colours=sys.stdout.isatty())}\n")
    print(f"scores: {request.folder / 'scores.csv'} and scores.json", file=sys.stderr)
