"""Restores a data set's images with a trained network, saves them, and has them scored where sharp images are there.

Reading, restoring and saving overlap; several GPUs share the images under torchrun; a run that was stopped continues
where it was. Scores are evaluation's, see engine/evaluate.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets.catalogue import DataSet
from datasets.folder import thread_pool
from datasets.headers import check_headers
from datasets.images import read_rgb, write_png
from datasets.layouts import LayoutError, Pair, find_pairs
from metrics.catalogue import METRICS, SINGLE, column_names
from metrics.paper import paper_table
from models.images import images_to_tensor, tensor_to_images

from .. import distributed, provenance
from ..config import results_dir
from ..console import readable_errors
from ..evaluate import run as evaluation
from ..evaluate.command import Request
from ..evaluate.comparison import OWN_NAMES, baseline_lines, columns, run_line
from ..evaluate.pairing import Pairing, Sample
from ..evaluate.table import Line, Table
from ..lock import run_lock
from ..memory import GIB, peak_memory
from ..prefetch import batches, prefetch
from .inference import Restorer
from .record import INPUT, Predictions, PredictionsError
from .weights import find_weights

READERS, WRITERS = 2, 4  # threads; decoding and encoding release Python's lock
ALWAYS = ("psnr", "ssim_matlab_rgb", "ssim_per_channel", "blurred_psnr")  # flags, where there are sharp images


@dataclass(frozen=True)
class Outcome:
    """What a run has made.

    Attributes:
        predictions: the folder with all the pairs' images.
        left_out: names of the pairs beyond --limit.
        mode: how images were restored, in words.
        results: time and memory.
    """

    predictions: Predictions
    pairs: list[Pair]
    left_out: list[str]
    mode: str
    results: dict[str, Any]


def predict(data_set: DataSet, arguments: argparse.Namespace) -> None:
    """Restores, saves, has the images scored, and reports."""
    with readable_errors():
        with distributed.process_group(arguments.device):
            outcome = run(data_set, arguments)
            reports = distributed.is_main()
        if reports:  # alone: scoring uses all cores
            report(data_set, arguments, outcome)


def run(data_set: DataSet, arguments: argparse.Namespace) -> Outcome:
    """Restores this process's share of the images; the first process concludes for all of them."""
    # What to restore, and with what.
    weights = find_weights(arguments.weights, arguments.job_name, data_set.weights)
    everything = find_test_pairs(data_set, arguments.input)
    pairs = everything[: arguments.limit]
    with distributed.fail_together():
        if distributed.is_main():
            check_headers(pairs, progress=sys.stderr.isatty())
    restorer = Restorer.from_flags(weights, arguments)
    inputs = {pair.name: pair.blurred for pair in everything}
    predictions = Predictions(images_folder(data_set, arguments), inputs, distributed.rank())

    refuse_to_overwrite_inputs(predictions, pairs)
    with run_lock(predictions.images, predictions.lock):  # no other run in the same folder
        with distributed.fail_together():
            if distributed.is_main():
                # What decides a result's values: a folder never mixes images made with different ones.
                maker = restorer.maker
                decisive = [*maker, INPUT, *(["batch_size"] if maker["kl_gate"] == "batch" else [])]
                predictions.begin(make_record(data_set, arguments, weights, restorer), decisive, arguments.overwrite)
                where = distributed.describe(restorer.device)
                print(f"{data_set.title}: {len(pairs)} images with {weights} on {where}", flush=True)
        (done, *_) = distributed.gather(set(predictions.finished()) if distributed.is_main() else None)
        share = [pair for pair in pairs if pair.name not in done][distributed.rank() :: distributed.world_size()]
        earlier = sum(pair.name in done for pair in pairs)
        seconds = restore_all(share, restorer, arguments.batch_size, predictions, earlier)
        measured = distributed.gather((seconds, peak_memory(restorer.device)))
        results = summarise(len(pairs), arguments.batch_size, measured)
        if distributed.is_main():
            predictions.merge()
            predictions.conclude(results)
    left_out = [pair.name for pair in everything[len(pairs) :]]
    return Outcome(predictions, pairs, left_out, f"{restorer.mode}, {restorer.precision}", results)


def images_folder(data_set: DataSet, arguments: argparse.Namespace) -> Path:
    """Where the restored images go."""
    return arguments.output or results_dir(arguments.job_name) / data_set.images


def find_test_pairs(data_set: DataSet, folders: list[Path] | None) -> list[Pair]:
    """The data set's test pairs, from its default place or from the folder or folders given. Raises LayoutError."""
    if folders is None and not Path(data_set.folder).is_dir():
        raise LayoutError(
            f"{data_set.folder}: no such folder; unpack {data_set.title} there, or say where it lies with --input"
        )
    if folders and len(folders) == 2:
        return find_pairs(folders)
    return find_pairs(folders[0] if folders else data_set.folder, "test", variant=data_set.variant)


def refuse_to_overwrite_inputs(predictions: Predictions, pairs: list[Pair]) -> None:
    """Raises PredictionsError where a result would be written over an image of the data set."""
    inputs = {path.resolve() for pair in pairs for path in (pair.blurred, pair.sharp) if path is not None}
    for pair in pairs:
        if predictions.image(pair.name).resolve() in inputs:
            raise PredictionsError(f"{predictions.image(pair.name)} is an input image; choose another --output")


def make_record(
    data_set: DataSet, arguments: argparse.Namespace, weights: Path, restorer: Restorer
) -> dict[str, object]:
    """What makes the results what they are."""
    return {
        "dataset": data_set.title,
        INPUT: [str(folder.resolve()) for folder in input_folders(data_set, arguments)],
        "job_name": arguments.job_name,
        "weights": str(weights),
        **restorer.maker,
        "streamed": restorer.streamed,
        "compiled": arguments.compile,
        "batch_size": arguments.batch_size,
        "device": distributed.describe(restorer.device),
        "processes": distributed.world_size(),
        "git": provenance.git_hash(),
        "versions": provenance.versions(),
    }


def input_folders(data_set: DataSet, arguments: argparse.Namespace) -> tuple[Path, ...]:
    return tuple(arguments.input or [Path(data_set.folder)])


def restore_all(
    pairs: list[Pair], restorer: Restorer, batch_size: int, predictions: Predictions, earlier: int
) -> list[float]:
    """Restores and saves the pairs' images, in order; returns the seconds each took. `earlier`: how many are done."""
    seconds = []
    bar = tqdm(
        total=earlier + len(pairs),
        initial=earlier,
        desc="restoring",
        unit="image",
        disable=not distributed.is_main(),
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    # After an error, or Ctrl-C, the writers still save what is restored.
    with bar, thread_pool(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        read = prefetch(readers, lambda pair: (pair, read_rgb(pair.blurred)), pairs, depth=max(READERS, batch_size))
        equal = batches(read, batch_size, kind=lambda loaded: loaded[1].shape)
        restored = (image for batch in equal for image in restore_batch(restorer, batch))
        for taken in prefetch(writers, functools.partial(save, predictions), restored, depth=2 * WRITERS):
            seconds.append(taken)
            bar.update()
    return seconds


def restore_batch(restorer: Restorer, batch: list[tuple[Pair, np.ndarray]]) -> Iterator[tuple[Pair, np.ndarray, float]]:
    """Each pair, its restored image and the seconds that it took. Raises what Restorer.restore raises."""
    pairs, blurred = zip(*batch, strict=True)
    restored, seconds = restorer.restore(images_to_tensor(list(blurred)), *(str(pair.blurred) for pair in pairs))
    for pair, image in zip(pairs, tensor_to_images(restored), strict=True):
        yield pair, image, seconds / len(batch)


def save(predictions: Predictions, restored: tuple[Pair, np.ndarray, float]) -> float:
    """Saves the image and then counts it as finished; returns its seconds."""
    pair, image, seconds = restored
    write_png(predictions.image(pair.name), image)
    predictions.add(pair.name, seconds)
    return seconds


def summarise(images: int, batch_size: int, measured: list[tuple[list[float], int | None]]) -> dict[str, object]:
    """Time and memory, from what all processes `measured`: the seconds of each image and the peak memory in bytes."""
    results: dict[str, Any] = {"images": images}
    # A process's first batch warms it up and does not count, unless it is all there is.
    seconds = [second for seconds, _ in measured for second in seconds[batch_size:] or seconds]
    if seconds:
        results |= {"seconds_per_image": statistics.median(seconds), "images_timed": len(seconds)}
    peaks = [peak for _, peak in measured if peak is not None]
    if peaks:
        results["peak_memory_bytes"] = max(peaks)
    return results


# Scores and the report


def report(data_set: DataSet, arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Has the images scored; prints the means beside the paper's row, where they cannot be compared, time, memory."""
    request = scoring_request(data_set, arguments, outcome.pairs)
    record = evaluation.score(request, pairing(outcome)) if request.metrics else None
    print_scores(data_set, f"{data_set.title}, {len(outcome.pairs)} images, {outcome.mode}", record, arguments.evaluate)
    if data_set.count not in (None, len(outcome.pairs)) and data_set.table:
        print(f"Not comparable with the paper's figures: they are over all {data_set.count} images of the test set.")
    if arguments.tile:
        print("Not comparable with scores of full images, including the paper's: tiles score differently.")
    if data_set.note:
        print(data_set.note)
    if "seconds_per_image" in outcome.results:
        results = outcome.results
        print(f"time per image: {results['seconds_per_image']:.3f} s, median of {results['images_timed']}")
    if "peak_memory_bytes" in outcome.results:
        print(f"peak memory of a process: {outcome.results['peak_memory_bytes'] / GIB:.2f} GiB")
    print(f"images: {outcome.predictions.images}")
    if record and arguments.evaluate:
        evaluation.report(request, record)
    elif record:
        print(f"scores: {request.folder}")


def scoring_request(data_set: DataSet, arguments: argparse.Namespace, pairs: list[Pair]) -> Request:
    """What is measured of the images: nothing without sharp images, unless --evaluate asks for all that can be."""
    flags = dict.fromkeys(ALWAYS + (data_set.metrics if arguments.evaluate else ()))
    if not (data_set.has_sharp and all(pair.sharp for pair in pairs)):
        flags = {flag: None for flag in flags if all(METRICS[name].kind == SINGLE for name in column_names([flag]))}
    return Request(
        images_folder(data_set, arguments),
        data_set,
        input_folders(data_set, arguments),
        tuple(flags),
        device=arguments.device,
    )


def pairing(outcome: Outcome) -> Pairing:
    samples = [
        Sample(pair.name, outcome.predictions.image(pair.name), pair.sharp, pair.blurred) for pair in outcome.pairs
    ]
    return Pairing(samples, missing=outcome.left_out)


def print_scores(data_set: DataSet, title: str, record: dict | None, all_measured: bool) -> None:
    """The table of means, the paper's figures in a row of their own that says so."""
    paper = paper_table(data_set.key)["XYScanNet"] if data_set.key and data_set.table else {}
    lines = [*baseline_lines(record), run_line("restored", record)] if record else []
    names = set(column_names(ALWAYS)) & {name for line in lines for name in line.figures}
    figures = {OWN_NAMES[word]: figure for word, figure in paper.items()}
    if names & figures.keys():
        lines.append(Line("the paper's XYScanNet", figures))
    lines = [Line(line.label, line.figures, competes=False) for line in lines]  # other images: none is the best
    print(f"\n{Table(title, columns(names, lines), lines).render('text')}" if names else f"\n{title}")
    others = ", ".join(f"{word} {figure}" for word, figure in paper.items() if OWN_NAMES[word] not in names)
    if others and not all_measured:
        print(f"The paper's XYScanNet has {others}; --evaluate measures these.")
