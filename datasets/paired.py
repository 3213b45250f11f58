"""Pairs of images as PyTorch datasets, and the check of all their headers before a run starts."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from .augmentation import augment, random_crop
from .degradation import Degradation
from .images import ImageError, read_rgb, read_size
from .layouts import LayoutError, Pair

Reader = Callable[[Path], np.ndarray]  # path -> uint8 (H, W, 3) RGB
HEADER_THREADS = 16


class PairedCrops(Dataset):
    """Random augmented crops of pairs, for training.

    An item is addressed by (epoch, index) and drawn from a generator seeded with [seed, epoch, index]: it depends on
    nothing else, so that resuming and the number of workers and processes change nothing.

    degradation: makes the blurred crop of the augmented sharp one; the pairs' blurred images are not read.
    Raises: ValueError for a pair without sharp image; ImageError for images that cannot be read or do not fit.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        patch_size: int,
        seed: int,
        read: Reader = read_rgb,
        degradation: Degradation | None = None,
    ) -> None:
        alone = next((pair for pair in pairs if pair.sharp is None), None)
        if alone is not None:
            raise ValueError(f"{alone.blurred}: has no sharp image, so nothing can be learnt from it")
        self.pairs, self.patch_size, self.seed, self.read = pairs, patch_size, seed, read
        self.degradation = degradation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(epoch, index) -> blurred, sharp: uint8 (3, P, P), contiguous."""
        epoch, index = key
        pair = self.pairs[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            sharp = self.read(pair.sharp)
            blurred = sharp if self.degradation else self.read(pair.blurred)
            blurred, sharp = augment(*random_crop(blurred, sharp, self.patch_size, rng), rng)
            if self.degradation:
                blurred = self.degradation(sharp, rng)
        except ImageError:
            raise
        except ValueError as error:
            raise ImageError(f"{pair.blurred}: {error}") from error
        return _to_tensor(blurred), _to_tensor(sharp)


class WholeBatches(Dataset):
    """Batches of a data set's items, addressed by lists of its keys, or the error that one of them met.

    An image error, a file's or memory's is returned, not raised: a DataLoader would turn an error of its process into
    a text with a traceback in it. Whoever takes the batches raises it.
    """

    def __init__(self, items: Dataset) -> None:
        self.items = items

    def __getitem__(self, keys: Sequence) -> list[torch.Tensor] | Exception:
        try:
            return default_collate([self.items[key] for key in keys])
        except (ImageError, OSError, MemoryError) as error:
            return error


class WholePairs(Dataset):
    """Full images, for validation and prediction. Sizes may vary: load them with batch_size=None.

    degradation: makes the blurred image of the sharp one, each time the same.
    Raises: ImageError for an image that cannot be read.
    """

    def __init__(self, pairs: Sequence[Pair], read: Reader = read_rgb, degradation: Degradation | None = None) -> None:
        self.pairs, self.read, self.degradation = pairs, read, degradation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor | None, str]:
        """-> blurred uint8 (3, H, W), sharp uint8 (3, H, W) or None where there is none, the pair's name."""
        pair = self.pairs[index]
        if self.degradation:
            blurred, sharp = self.degradation.whole(self.read(pair.sharp), index)
            return _to_tensor(blurred), _to_tensor(sharp), pair.name
        sharp = None if pair.sharp is None else _to_tensor(self.read(pair.sharp))
        return _to_tensor(self.read(pair.blurred)), sharp, pair.name


def check_headers(pairs: Sequence[Pair], patch_size: int | None = None, progress: bool = False) -> None:
    """Reads the header of every image, so that a bad file stops a run at its start and not at hour 30.

    patch_size: the least height and width, None for any.
    progress: show a bar (one process of several is enough).
    Raises: ImageError for the first image that is missing or truncated, LayoutError for the first whose size differs
        from its partner's or is below the patch's; the message counts the others.
    """
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = pool.map(_header_problem, pairs, repeat(patch_size))
        bar = tqdm(results, "Reading image headers", len(pairs), unit="pair", disable=not progress, leave=False)
        problems = [problem for problem in bar if problem is not None]
    if problems:
        more = len(problems) - 1
        raise type(problems[0])(f"{problems[0]}" + (f" (and {more} more of {len(pairs)} pairs)" if more else ""))


def worker_init(worker_id: int) -> None:
    """A DataLoader's worker_init_fn: OpenCV's own threads would compete with the other workers.

    A terminal's Ctrl-C and a batch system's warnings reach every process of a job: the training process decides what
    they mean, and needs its workers until it has decided.
    """
    cv2.setNumThreads(0)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _header_problem(pair: Pair, patch_size: int | None) -> ValueError | None:
    try:
        size = read_size(pair.blurred)
        if pair.sharp is not None and (sharp_size := read_size(pair.sharp)) != size:
            return LayoutError(
                f"{pair.blurred}: {_times(size)} pixels, but its sharp image {pair.sharp} has {_times(sharp_size)}"
            )
    except ImageError as error:
        return error
    if patch_size is not None and min(size) < patch_size:
        return LayoutError(f"{pair.blurred}: {_times(size)} pixels, smaller than the patch of {patch_size}")
    return None


def _times(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # A copy: the source may be a read-only view, and pinning and stacking want contiguous memory.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
