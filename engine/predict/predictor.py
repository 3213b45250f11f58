"""Restores a data set's images with a trained network, saves them, and scores them where sharp images are there.

Reading, restoring, and saving with scoring overlap; several GPUs share the images under torchrun; a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.images import read_rgb, read_size, write_png
from datasets.layouts import LayoutError, Pair, find_pairs
from metrics import paper_row, psnr, ssim_matlab_rgb, ssim_per_channel

from .. import distributed, provenance
from ..config import results_dir
from ..console import readable_errors
from ..evaluate.command import Request
from ..evaluate.run import evaluate
from ..memory import GIB, peak_memory
from ..prefetch import prefetch, threads
from .images import images_to_tensor, tensor_to_images
from .inference import Restorer
from .record import Row, ScoreSheet, ScoreSheetError
from .test_set import PredictSpec
from .weights import checksum, find_weights

READERS, WRITERS = 2, 4  # threads; decoding, encoding and scoring release Python's lock
# What decides a result's values: a folder never mixes images made with different ones.
DECISIVE = ("weights_sha256", "kl_gate", "precision", "tile", "overlap", "local_pooling", "self_ensemble", "input")
SCORES = ("psnr", "ssim_matlab_rgb", "ssim_per_channel", "blurred_psnr")


@dataclass(frozen=True)
class Loaded:
    """A pair's images, uint8 RGB (H, W, 3)."""

    pair: Pair
    blurred: np.ndarray
    sharp: np.ndarray | None


@dataclass(frozen=True)
class Restored:
    """A restored image, uint8 RGB (H, W, 3), the seconds it took, and what it was made of."""

    source: Loaded
    image: np.ndarray
    seconds: float


def predict(spec: PredictSpec, arguments: argparse.Namespace) -> None:
    """Restores, saves, scores, and reports."""
    with readable_errors():
        with distributed.process_group(arguments.device):
            run(spec, arguments)
            reports = distributed.is_main()
        if arguments.evaluate and reports:  # alone: measuring starts processes of its own
            evaluate(
                Request(
                    images_folder(spec, arguments),
                    spec.paper,
                    tuple(arguments.input or [Path(spec.folder)]),
                    device=arguments.device,
                    partial=arguments.limit is not None,
                )
            )


def run(spec: PredictSpec, arguments: argparse.Namespace) -> None:
    """Restores this process's share of the images; the first process reports on all of them."""
    # What to restore, and with what.
    weights = find_weights(arguments.weights, arguments.job_name, spec.weights)
    pairs = find_test_pairs(spec, arguments.input)[: arguments.limit]
    restorer = Restorer.from_flags(weights, arguments)
    sheet = ScoreSheet(images_folder(spec, arguments), distributed.rank())

    # What is done already.
    refuse_to_overwrite_inputs(sheet, pairs)
    if distributed.is_main():
        decisive = (*DECISIVE, "batch_size") if restorer.kl_gate == "batch" else DECISIVE
        sheet.begin(make_record(spec, arguments, weights, restorer), decisive, arguments.overwrite)
        print(f"{spec.name}: {len(pairs)} images with {weights} on {distributed.describe(restorer.device)}", flush=True)
    distributed.barrier()
    done = sheet.done()
    earlier = [row for name, row in sheet.rows().items() if name in done & {pair.name for pair in pairs}]
    share = [pair for pair in pairs if pair.name not in done][distributed.rank() :: distributed.world_size()]

    # Restore, save, score.
    seconds = restore_all(share, restorer, arguments.batch_size, sheet, earlier)

    # Report.
    measured = distributed.gather((seconds, peak_memory(restorer.device)))
    if distributed.is_main():
        sheet.merge()
        results = summarise(sheet, pairs, arguments.batch_size, measured)
        sheet.conclude(results)
        report(spec, restorer, results)
        print(f"images: {sheet.images}\nscores: {sheet.table}")


def images_folder(spec: PredictSpec, arguments: argparse.Namespace) -> Path:
    return arguments.output or results_dir(arguments.job_name) / spec.images


def find_test_pairs(spec: PredictSpec, folders: list[Path] | None) -> list[Pair]:
    """The data set's test pairs, from its default place or from the folder or folders given."""
    if folders is None and not Path(spec.folder).is_dir():
        raise LayoutError(f"{spec.folder}: no such folder; unpack {spec.name} there, or say where it lies with --input")
    if folders and len(folders) == 2:
        return find_pairs(folders)
    return find_pairs(folders[0] if folders else spec.folder, "test", variant=spec.variant)


def choose_mode(restorer: Restorer, pairs: list[Pair], batch_size: int, earlier: int | None) -> str:
    """Settles --tile auto for all images, the largest of which must fit, and for all processes; returns it in words.

    `earlier`: the tile of the results that are there already, to go on with.
    """
    if earlier:
        restorer.tile, restorer.streamed = earlier, False
        return f"{restorer.mode}, as the images that are there already"
    way = restorer.choose_mode(batch_size, *max((read_size(pair.blurred) for pair in pairs), key=math.prod))
    ways = [(tile, way) for tile, way in distributed.gather((restorer.tile, way)) if tile]
    if ways:  # streamed and whole give the same images, tiles of another size do not
        restorer.tile, way = min(ways)
        restorer.streamed = False
    return way


def earlier_tile(sheet: ScoreSheet) -> int | None:
    """The tile that a record names; what is wrong with one is said when it is compared with the new one."""
    try:
        return json.loads(sheet.record.read_text(encoding="utf-8")).get("tile")
    except (OSError, ValueError, AttributeError):
        return None


def refuse_to_overwrite_inputs(sheet: ScoreSheet, pairs: list[Pair]) -> None:
    inputs = {path.resolve() for pair in pairs for path in (pair.blurred, pair.sharp) if path is not None}
    for pair in pairs:
        if sheet.image(pair.name).resolve() in inputs:
            raise ScoreSheetError(f"{sheet.image(pair.name)} is an input image; choose another --output")


def make_record(
    spec: PredictSpec, arguments: argparse.Namespace, weights: Path, restorer: Restorer
) -> dict[str, object]:
    """What makes the results what they are."""
    return {
        "dataset": spec.name,
        "input": [str(folder.resolve()) for folder in arguments.input or [Path(spec.folder)]],
        "job_name": arguments.job_name,
        "weights": str(weights),
        "weights_sha256": checksum(weights),
        "kl_gate": restorer.kl_gate,
        "precision": arguments.precision,
        "tile": restorer.tile,
        "overlap": restorer.overlap if restorer.tile else None,
        "local_pooling": restorer.local_pooling,
        "self_ensemble": restorer.self_ensemble or None,  # as in records from before there was a choice
        "streamed": restorer.streamed,
        "compiled": arguments.compile,
        "batch_size": arguments.batch_size,
        "device": distributed.describe(restorer.device),
        "processes": distributed.world_size(),
        "scored": "saved 8-bit RGB values, one image at a time, then averaged",
        "git": provenance.git_hash(),
        "versions": provenance.versions(),
    }


def restore_all(
    pairs: list[Pair], restorer: Restorer, batch_size: int, sheet: ScoreSheet, earlier: list[Row]
) -> list[float]:
    """Restores, saves and scores the pairs, in order; returns the seconds each took. `earlier`: rows made before."""
    seconds, scores = [], [row.psnr for row in earlier if row.psnr is not None]
    bar = tqdm(
        total=len(earlier) + len(pairs),
        initial=len(earlier),
        desc="restoring",
        unit="image",
        disable=not distributed.is_main(),
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )
    with bar, threads(READERS) as readers, threads(WRITERS) as writers:
        read = prefetch(readers, read_pair, pairs, depth=max(READERS, batch_size))
        restored = (image for batch in batches(read, batch_size) for image in restore_batch(restorer, batch))
        for row in prefetch(writers, functools.partial(save_and_score, sheet), restored, depth=2 * WRITERS):
            seconds.append(row.seconds)
            if row.psnr is not None:
                scores.append(row.psnr)
                bar.set_postfix_str(f"PSNR {statistics.fmean(scores):.2f} dB", refresh=False)
            bar.update()
    return seconds


def read_pair(pair: Pair) -> Loaded:
    blurred, sharp = read_rgb(pair.blurred), None if pair.sharp is None else read_rgb(pair.sharp)
    if sharp is not None and sharp.shape != blurred.shape:
        sizes = " and ".join(
            f"{path} is {image.shape[1]} x {image.shape[0]}"
            for path, image in ((pair.blurred, blurred), (pair.sharp, sharp))
        )
        raise LayoutError(f"a blurred image and its sharp one differ in size: {sizes}")
    return Loaded(pair, blurred, sharp)


def batches(images: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Up to `size` neighbouring images of one height and width at a time."""
    batch: list[Loaded] = []
    for image in images:
        if batch and image.blurred.shape != batch[0].blurred.shape:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def restore_batch(restorer: Restorer, batch: list[Loaded]) -> Iterator[Restored]:
    restored, seconds = restorer.restore(
        images_to_tensor([image.blurred for image in batch]), *(str(image.pair.blurred) for image in batch)
    )
    for image, levels in zip(batch, tensor_to_images(restored), strict=True):
        yield Restored(image, levels, seconds / len(batch))


def save_and_score(sheet: ScoreSheet, restored: Restored) -> Row:
    """Saves the image, scores the very values that were saved, and then counts it as done."""
    image, blurred, sharp = restored.image, restored.source.blurred, restored.source.sharp
    name = restored.source.pair.name
    write_png(sheet.image(name), image)
    scores = (None,) * 4
    if sharp is not None:
        scores = psnr(image, sharp), ssim_matlab_rgb(image, sharp), ssim_per_channel(image, sharp), psnr(blurred, sharp)
    row = Row(name, *scores, restored.seconds)
    sheet.append(row)
    return row


def summarise(
    sheet: ScoreSheet, pairs: list[Pair], batch_size: int, measured: list[tuple[list[float], int | None]]
) -> dict[str, object]:
    """Means of the scores, and what all processes `measured`: the seconds of each image and the peak memory."""
    rows = sheet.rows()
    scored = [rows[pair.name] for pair in pairs if rows[pair.name].psnr is not None]
    results: dict[str, object] = {"images": len(pairs), "images_scored": len(scored)}
    if scored:
        results |= {column: statistics.fmean(getattr(row, column) for row in scored) for column in SCORES}
    # A process's first batch warms it up and does not count, unless it is all there is.
    seconds = [second for seconds, _ in measured for second in seconds[batch_size:] or seconds]
    if seconds:
        results |= {"seconds_per_image": statistics.median(seconds), "images_timed": len(seconds)}
    peaks = [peak for _, peak in measured if peak is not None]
    if peaks:
        results["peak_memory_bytes"] = max(peaks)
    return results


def report(spec: PredictSpec, restorer: Restorer, results: dict[str, object]) -> None:
    """Prints the means beside the paper's row, and says where they cannot be compared; time; memory."""
    print(f"\n{spec.name}, {results['images']} images, {restorer.mode}, {restorer.precision}")
    print_scores(spec, results)
    if spec.count not in (None, results["images"]):
        print(f"Not comparable with the paper's figures: they are over all {spec.count} images of the test set.")
    if restorer.tile:
        print("Not comparable with full images' figures, the paper's among them: tiles score differently.")
    if spec.note:
        print(spec.note)
    if "seconds_per_image" in results:
        print(f"time per image: {results['seconds_per_image']:.3f} s, median of {results['images_timed']}")
    if "peak_memory_bytes" in results:
        print(f"peak memory of a process: {results['peak_memory_bytes'] / GIB:.2f} GiB")


def print_scores(spec: PredictSpec, results: dict[str, object]) -> None:
    """The table of means, the paper's figures in a row of their own that says so."""
    paper = paper_row(spec.paper) if spec.paper else {}
    lines = [("", "PSNR (dB)", "ssim_matlab_rgb", "ssim_per_channel")]
    if "psnr" in results:
        lines += [
            ("blurred input", f"{results['blurred_psnr']:.2f}", "", ""),
            (
                "restored",
                f"{results['psnr']:.2f}",
                f"{results['ssim_matlab_rgb']:.4f}",
                f"{results['ssim_per_channel']:.4f}",
            ),
        ]
    if "PSNR" in paper:
        lines += [("the paper's XYScanNet", f"{paper['PSNR']:.2f}", f"{paper['SSIM']:.3f}", "")]
    if len(lines) > 1:
        print("\n".join(f"{line[0]:<22}{line[1]:>10}{line[2]:>17}{line[3]:>18}" for line in lines))
    others = ", ".join(f"{column} {figure}" for column, figure in paper.items() if column not in ("PSNR", "SSIM"))
    if others:
        print(f"The paper's XYScanNet has {others}; --evaluate measures these.")
