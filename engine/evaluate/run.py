"""Scores a folder of restored images with every metric of the paper, beside the paper's figures.

results/J/images_scores/scores.csv     each image's scores, written as they are made: a stopped run goes on there
results/J/images_scores/scores.json    the means; exact names, models and backbones with checksums, versions, image
                                       counts, and what made the images

Scores that an earlier run made of the same files stay in scores.json beside the ones that are asked for now.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from datasets.folder import cores
from metrics.catalogue import METRICS, SET, SINGLE, column_names
from metrics.downloads import DownloadError
from metrics.fid import inception

from .. import distributed
from ..csv_rows import digest
from ..lock import run_lock
from ..provenance import code_checksum
from .command import Request
from .comparison import compare
from .pairing import Pairing, Sample, find_samples, listed
from .per_image import score_on_cpu, score_on_gpu
from .record import EvaluationError, describe, earlier_record, other_metrics, write_record
from .set_level import NO_BLURRED, SetScores
from .store import ImageScores, stamp


def evaluate(request: Request) -> dict:
    """What evaluate.py does: pairs, scores, and prints the table; returns what scores.json holds.

    Raises:
        EvaluationError: or another of this repository's errors, before anything is measured if possible.
    """
    needs_sharp = any(METRICS[name].kind != SINGLE for name in wanted_columns(request))
    pairing = find_samples(request.restored, list(request.truth), request.data_set.variant, needs_sharp)
    check_pairing(pairing, request)
    record = score(request, pairing)
    report(request, record)
    return record


def score(request: Request, pairing: Pairing) -> dict:
    """Measures what is wanted and not measured yet, writes scores.csv and scores.json; returns what the latter holds.

    Raises:
        EvaluationError: a file that is no model.
        ImageError: a file that is no image.
        BusyError: another evaluation writes to the same folder.
    """
    columns, device = wanted_columns(request), distributed.device(request.device)
    scorers, how, missing = load_scorers(columns, request, pairing.samples, device)
    per_image = [name for name in how if METRICS[name].kind != SET]

    with run_lock(request.folder):  # no other evaluation into the same folder
        # What an earlier run has measured.
        stamps = {sample.name: stamp(sample.restored, sample.sharp) for sample in pairing.samples}
        files = digest_of_files(pairing.samples, "restored", "sharp", "blurred")
        earlier = earlier_record(request.folder)
        kept = [
            name for name, entry in earlier["metrics"].items() if entry.get("how") == how.get(name, entry.get("how"))
        ]
        images = ImageScores(request.folder / "scores.csv", stamps, kept)
        same = earlier["files"] == files if "files" in earlier else images.found == stamps
        others = other_metrics(earlier, columns, same)

        # Measure.
        record = describe(request, pairing, device) | {"files": files}
        if same:  # of the same images an earlier command may have said which data set they are of
            record["dataset"] = record["dataset"] or earlier.get("dataset")
        write_record(request.folder, record, {name: {"how": how[name]} for name in how} | others, complete=False)
        images.begin(per_image)
        sets = SetScores(pairing.samples, scorers, how, request.profile, device, request.folder)
        passes = split_by_device(per_image, device)
        steps = len(passes) * len(pairing.samples) + sets.steps
        with tqdm(total=steps, desc="scoring", unit="image", mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
            for score_all, names in passes.items():
                tasks = [(sample, lack) for sample in pairing.samples if (lack := images.missing(sample.name, names))]
                bar.update(len(pairing.samples) - len(tasks))
                for name, scores in score_all(tasks, scorers, request.workers or cores()):
                    images.add(name, scores)
                    bar.update()
            of_sets = sets.score(bar)

        # Write.
        images.write()
        scores = (
            image_means(images, per_image) | of_sets | {name: {"not_measured": why} for name, why in missing.items()}
        )
        metrics = {name: scores[name] | {"how": how.get(name)} for name in columns}
        return write_record(request.folder, record, metrics | others, complete=True)


def report(request: Request, record: dict) -> None:
    """Prints the table of the metrics that were asked for."""
    metrics = {name: record["metrics"][name] for name in wanted_columns(request)}
    table = compare(
        request.data_set.key,
        request.profile,
        {"this run": record | {"dataset": request.data_set.key, "metrics": metrics}},
    )
    if set(record["images"]["suffixes"]) - {".png"}:
        table.notes.append("The restored images are not all PNG: losses from compression count against the network.")
    print(f"\n{table.render(request.form, colours=sys.stdout.isatty())}\n")
    print(f"scores: {request.folder / 'scores.csv'} and scores.json", file=sys.stderr)


# What to score


def wanted_columns(request: Request) -> list[str]:
    """The metrics that the request asks for. Raises EvaluationError for what cannot be measured."""
    flags = request.metrics or request.data_set.metrics
    columns = column_names(flags, request.profile, request.niqe_model)
    if not request.data_set.has_sharp and any(METRICS[name].kind != SINGLE for name in columns):
        alone = ", ".join(dict.fromkeys(metric.flag for metric in METRICS.values() if metric.kind == SINGLE))
        raise EvaluationError(f"{request.data_set.title} has no sharp images: only {alone} can be measured on it")
    return columns


def check_pairing(pairing: Pairing, request: Request) -> None:
    """Raises EvaluationError where images cannot be scored, unless partial scores are asked for; and where a restored
    image is a sharp one itself, by whatever name or link, which says nothing."""
    sharp = {_identity(sample.sharp) for sample in pairing.samples if sample.sharp}
    same = [sample.name for sample in pairing.samples if _identity(sample.restored) in sharp]
    if same:
        raise EvaluationError(
            f"--pred and --gt: {len(same)} restored images are the sharp ones themselves, the first "
            f"{same[0]}; nothing was scored. Name the restored images with --pred"
        )
    complaints = pairing.complaints()
    if complaints and (not request.partial or not pairing.samples):
        advice = "" if not pairing.samples else "\nNothing was scored. Use --partial to score the others"
        raise EvaluationError(f"{request.restored} and the data set do not match:\n{complaints}{advice}")
    if complaints:
        print(f"left out:\n{complaints}", file=sys.stderr)
    if pairing.by_ending:
        print(
            f"paired by the end of their names, {len(pairing.by_ending)} images:{listed(pairing.by_ending, 2)}",
            file=sys.stderr,
        )


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names and links of a file."""
    file = path.stat()
    return file.st_dev, file.st_ino


def load_scorers(
    columns: list[str], request: Request, samples: list[Sample], device: torch.device
) -> tuple[dict[str, Callable], dict[str, dict], dict[str, str]]:
    """What computes each metric; what decides its value (definition, versions, files with checksums); and for metrics
    that cannot be measured here, why.

    Raises:
        EvaluationError: a file that is no model.
    """
    scorers, how, missing = {}, {}, {}
    no_features = ""
    for name in columns:
        metric = METRICS[name]
        if any(getattr(sample, kind) is None for sample in samples for kind in metric.images):
            missing[name] = NO_BLURRED
            continue
        if metric.kind == SET and no_features:  # a failed download is not retried for every metric
            missing[name] = no_features
            continue
        try:
            scorers[name] = metric.load(device=str(device), niqe_model=request.niqe_model)
            facts = inception(str(device)).facts if metric.kind == SET else getattr(scorers[name], "facts", {})
        except DownloadError as error:
            missing[name] = str(error)
            no_features = str(error) if metric.kind == SET else ""
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        else:
            how[name] = {
                "definition": metric.definition,
                "code_sha256": code_checksum(metric.files),
                "numpy": np.__version__,
                "opencv": cv2.__version__,
                **facts,
            }
            if metric.baseline_of:
                how[name]["files"] = digest_of_files(samples, "blurred")
    return scorers, how, missing


def digest_of_files(samples: list[Sample], *kinds: str) -> str:
    """Changes with any of the images, and with the set of images."""
    return digest(part for one in samples for part in (one.name, stamp(*(getattr(one, kind) for kind in kinds))))


# Measuring


def split_by_device(columns: list[str], device: torch.device) -> dict[Callable, list[str]]:
    """The metrics of single images by what scores them: threads on the CPU, or networks on a GPU in batches."""
    batched = [name for name in columns if METRICS[name].is_network and device.type == "cuda"]
    passes = {score_on_cpu: [name for name in columns if name not in batched], score_on_gpu: batched}
    return {score_all: names for score_all, names in passes.items() if names}


def image_means(images: ImageScores, columns: list[str]) -> dict[str, dict]:
    """Means over the images; those that have no score are named and left out."""
    means = {}
    for column in columns:
        scores = {name: row[column] for name, row in sorted(images.scores.items())}
        failed = {name: score for name, score in scores.items() if isinstance(score, str)}
        values = [score for score in scores.values() if not isinstance(score, str)]
        if values:
            means[column] = {"value": statistics.fmean(values), "images": len(values), "failed": failed}
        else:
            means[column] = {
                "not_measured": f"no image could be scored; the first failed with: {next(iter(failed.values()))}"
            }
    return means
