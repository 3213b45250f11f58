"""Scores of one image at a time: by threads on the CPU, networks on a GPU in batches."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch

from datasets.folder import thread_pool
from datasets.images import read_rgb
from metrics.catalogue import METRICS

from ..prefetch import batches, prefetch
from .pairing import Sample
from .store import Score

GPU_BATCH = 8

Task = tuple[Sample, list[str]]  # a sample, and the names of the metrics that it lacks
Scorers = Mapping[str, Any]  # by the metric's name, see Metric.load
Images = dict[str, np.ndarray]  # restored, sharp, blurred -> uint8 RGB (H, W, 3)


def score_on_cpu(tasks: list[Task], scorers: Scorers, workers: int) -> Iterator[tuple[str, dict[str, Score]]]:
    """The name and the scores of each task's image, in order, by so many threads."""
    with one_thread_each(), thread_pool(workers) as pool:
        yield from prefetch(pool, functools.partial(score_image, scorers=scorers), tasks, depth=4 * workers)


def score_image(task: Task, scorers: Scorers) -> tuple[str, dict[str, Score]]:
    """The image's name and its scores; the reason where an image cannot be scored.

    Raises:
        ImageError: a file that cannot be read.
    """
    sample, columns = task
    images = read_images(task)
    results: dict[tuple, Any] = {}  # a function that gives several scores is called once
    for column in columns:
        metric = METRICS[column]
        call = metric.function, metric.arguments, metric.images
        if call not in results:
            try:
                results[call] = scorers[column](*(images[kind] for kind in metric.images))
            except ValueError as error:  # too small, not to be aligned
                results[call] = " ".join(str(error).split())
    return sample.name, {column: _score(column, results) for column in columns}


def _score(column: str, results: dict[tuple, Any]) -> Score:
    metric = METRICS[column]
    result = results[metric.function, metric.arguments, metric.images]
    if isinstance(result, str):
        return result
    return float(result if metric.part is None else result[metric.part])


def read_images(task: Task) -> Images:
    """The images that the task's metrics compare."""
    sample, columns = task
    return {
        kind: read_rgb(getattr(sample, kind)) for kind in {kind for name in columns for kind in METRICS[name].images}
    }


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Libraries without threads of their own: the images share the cores, and a sum depends on how many make it."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def score_on_gpu(tasks: list[Task], scorers: Scorers, workers: int) -> Iterator[tuple[str, dict[str, Score]]]:
    """The networks' scores of each task, in batches of neighbouring images of one size, read by so many threads."""
    with thread_pool(workers) as readers:
        read = prefetch(readers, lambda task: (task, read_images(task)), tasks, depth=2 * GPU_BATCH)
        for batch in batches(read, GPU_BATCH, kind=lambda one: (one[1]["restored"].shape, one[0][1])):
            columns = batch[0][0][1]
            scores = {column: _batch_scores(column, [images for _, images in batch], scorers) for column in columns}
            for k, ((sample, _), _) in enumerate(batch):
                yield sample.name, {column: scores[column][k] for column in columns}


def _batch_scores(column: str, images: list[Images], scorers: Scorers) -> list[Score]:
    try:
        scores = scorers[column].batch(*([one[kind] for one in images] for kind in METRICS[column].images))
    except ValueError as error:  # too small for the network, as all of one size are
        return [" ".join(str(error).split())] * len(images)
    return list(map(float, scores))
