"""Scores of one image at a time: in processes over the images on a CPU, the networks in batches on a GPU."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import numpy as np
import torch

from datasets.images import read_rgb
from metrics import AlignmentError, niqe, psnr, psnr_ssim_aligned, ssim_matlab_rgb, ssim_per_channel
from metrics.ssim import ssim_both

from ..prefetch import prefetch
from .pairing import Sample
from .registry import ALIGNED, NETWORKS
from .store import Score

PAIR_FUNCTIONS = {"psnr": psnr, "ssim_matlab_rgb": ssim_matlab_rgb, "ssim_per_channel": ssim_per_channel}
SSIMS = ("ssim_matlab_rgb", "ssim_per_channel")
GPU_BATCH = 8
READERS = 4  # threads that decode for the GPU


class ScoringError(RuntimeError):
    """Scoring cannot go on; the message says why and what to do."""


# A sample, and the names of the scores that it lacks.
Task = tuple[Sample, list[str]]


@functools.cache
def load_network(name: str, device: str) -> Callable:
    """The network behind one of registry.NETWORKS, once in each process. Raises metrics.downloads.DownloadError."""
    # Imported where they are needed: a table of PSNR needs no torchvision.
    if name == "stlpips_alex":
        from metrics.stlpips import STLPIPS

        return STLPIPS(device=device)
    from metrics.lpips import LPIPS

    return LPIPS(net=name.removeprefix("lpips_"), device=device)


def score_image(task: Task, niqe_model: str) -> tuple[str, dict[str, Score]]:
    """The sample's name and its scores on the CPU; for a score that cannot be had of this image, why."""
    sample, columns = task
    restored = read_rgb(sample.restored)
    sharp = read_rgb(sample.sharp) if sample.sharp and set(columns) - {"niqe_live", "niqe_matlab"} else None
    scores: dict[str, Score] = {}
    for column in columns:
        if column in scores:
            continue
        try:
            if column in SSIMS and set(SSIMS) <= set(columns):
                scores |= zip(SSIMS, ssim_both(restored, sharp), strict=True)
            elif column in ALIGNED:
                scores |= zip(ALIGNED, map(float, psnr_ssim_aligned(restored, sharp)), strict=True)
            else:
                scores[column] = _score(column, restored, sharp, niqe_model)
        except (AlignmentError, ValueError) as error:
            reason = " ".join(str(error).split())
            scores |= dict.fromkeys(ALIGNED, reason) if column in ALIGNED else {column: reason}
    return sample.name, scores


def _score(column: str, restored: np.ndarray, sharp: np.ndarray | None, niqe_model: str) -> float:
    if column in ("niqe_live", "niqe_matlab"):
        return float(niqe(restored, model=niqe_model))
    if column in NETWORKS:
        return float(load_network(column, "cpu")(restored, sharp))
    return float(PAIR_FUNCTIONS[column](restored, sharp))


def score_in_processes(tasks: list[Task], niqe_model: str, workers: int) -> Iterator[tuple[str, dict[str, Score]]]:
    """`score_image` of each task, in order, by as many processes, each on one core."""
    function = functools.partial(score_image, niqe_model=niqe_model)
    workers = min(workers, len(tasks))
    if workers <= 1:
        with one_thread():
            yield from map(function, tasks)
        return
    # Forking the main process would copy locks that its threads hold; the fork server has none.
    start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare_worker)
    try:
        yield from prefetch(pool, function, tasks, depth=4 * workers)
    except BrokenProcessPool as error:
        raise ScoringError(
            "a scoring process died, killed by the system for want of memory perhaps; the same command "
            "goes on with the images that are left, --workers 1 needs less memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """One core a process; it ends with the main process, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The same arithmetic in the main process as in a worker: sums depend on how many threads make them."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def score_on_gpu(tasks: list[Task], device: torch.device) -> Iterator[tuple[str, dict[str, Score]]]:
    """The networks' scores of each task, in batches of neighbouring images of one size."""
    with ThreadPoolExecutor(READERS) as readers:
        for batch in _batches(prefetch(readers, _read, tasks, depth=2 * GPU_BATCH)):
            restored, sharp = [images[0] for _, images in batch], [images[1] for _, images in batch]
            columns = batch[0][0][1]
            scores = {column: _batch_scores(column, restored, sharp, device) for column in columns}
            for k, ((sample, _), _) in enumerate(batch):
                yield sample.name, {column: scores[column][k] for column in columns}


def _batch_scores(
    column: str, restored: list[np.ndarray], sharp: list[np.ndarray], device: torch.device
) -> list[Score]:
    try:
        return [float(score) for score in load_network(column, str(device)).batch(restored, sharp)]
    except ValueError as error:  # too small for the network, as all of one size are
        return [str(error)] * len(restored)


def _read(task: Task) -> tuple[Task, tuple[np.ndarray, np.ndarray]]:
    return task, (read_rgb(task[0].restored), read_rgb(task[0].sharp))


def _batches(images: Iterable[tuple[Task, tuple]]) -> Iterator[list[tuple[Task, tuple]]]:
    """Neighbours of one size that lack the same scores."""
    batch: list[tuple[Task, tuple]] = []
    for task, pair in images:
        if batch and (len(batch) == GPU_BATCH or pair[0].shape != batch[0][1][0].shape or task[1] != batch[0][0][1]):
            yield batch
            batch = []
        batch.append((task, pair))
    if batch:
        yield batch
