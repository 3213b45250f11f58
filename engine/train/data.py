"""The training and validation pairs of a run, and batches of crops in a fixed order."""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence

import cv2
import torch
from torch.utils.data import DataLoader, default_collate

from datasets.cache import cached_reader
from datasets.degradation import parse_degradation, sharp_pairs
from datasets.headers import check_headers
from datasets.images import read_rgb
from datasets.layouts import LayoutError, Pair, find_pairs
from datasets.paired import PairedCrops, WholeBatches, WholePairs
from datasets.stream import BatchStream, epoch_of, iterations_for

from .. import distributed
from ..schema import Config
from .signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

Batch = Sequence[torch.Tensor]  # blurred, sharp: (B, 3, P, P)


class Batches:
    """Iterates over a loader of `WholeBatches`, and raises the errors that it returns in place of batches."""

    def __init__(self, loader: DataLoader):
        self._batches = iter(loader)  # forks processes

    def close(self) -> None:
        """End the loader's processes, while Python can still wait for them."""
        batches, self._batches = self._batches, iter(())
        if shutdown := getattr(batches, "_shutdown_workers", None):
            # PyTorch raises a killed process's error here as well. In its destructor Python would print that.
            with contextlib.suppress(RuntimeError):
                shutdown()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, Exception):
            self.close()  # the error's traceback would keep the processes
            raise batch
        return batch


class TrainingData:
    """The images of one stage, for this rank.

    Raises:
        LayoutError: the folders do not hold pairs as the configuration says.
    """

    def __init__(self, config: Config, pin_memory: bool):
        self.config, self.pin_memory = config, pin_memory
        self.degradation = parse_degradation(config.data.degradation) if config.data.degradation else None
        self.train_pairs = self._find_pairs("train", "train")
        self.val_pairs = self._find_pairs("val", "test") if config.data.val else []
        self.iterations = config.train.iterations or iterations_for(
            config.train.epochs or 0, len(self.train_pairs), config.data.batch_size
        )

    def _find_pairs(self, key: str, split: str) -> list[Pair]:
        """The pairs of data.train or data.val, each with a sharp image."""
        source = getattr(self.config.data, key)
        try:
            if self.degradation:
                return sharp_pairs(source, split)
            return find_pairs(source, split, variant=self.config.data.variant, need_sharp=True)
        except LayoutError as error:
            raise LayoutError(
                f"data.{key}: {error}. Unpack the data set there, or name its folder: data.{key}=FOLDER"
            ) from error

    def check(self) -> None:
        """Read every image's header; ImageError or LayoutError for one that is damaged or too small."""
        progress = sys.stderr.isatty()
        check_headers(self.train_pairs, self.config.data.patch_size, progress=progress)
        check_headers(self.val_pairs, self.degradation.multiple if self.degradation else None, progress=progress)
        trained_on = {pair.blurred.resolve() for pair in self.train_pairs}
        if both := sum(pair.blurred.resolve() in trained_on for pair in self.val_pairs):
            logger.warning(
                "data.val: %d of %d validation images are also training images, so the scores that select best_ mean "
                "little",
                both,
                len(self.val_pairs),
            )

    def batches(self, start: int) -> Batches:
        """This rank's micro-batches from step ``start`` to the end, prefetched by worker processes."""
        workers = self.config.data.workers
        loader = DataLoader(
            WholeBatches(self._crops()),
            sampler=self._stream(start, self.iterations),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=worker_init,
            pin_memory=self.pin_memory,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # the loader would draw from the global one, which resuming restores
        )
        return Batches(loader)

    def read(self, iteration: int) -> list[Batch]:
        """This rank's micro-batches of one step, once more."""
        crops = self._crops()
        return [default_collate([crops[key] for key in keys]) for keys in self._stream(iteration, iteration + 1)]

    def validation_images(self) -> WholePairs:
        return WholePairs(self.val_pairs, self._reader(self.val_pairs), self.degradation)

    def names(self, iteration: int, micro_step: int) -> list[str]:
        """The images that this rank saw in a micro-step of a step."""
        keys = list(self._stream(iteration, iteration + 1))[micro_step]
        return [self.train_pairs[index].name for _, index in keys]

    def epoch(self, iteration: int) -> int:
        return epoch_of(iteration, len(self.train_pairs), self.config.data.batch_size)

    def _crops(self) -> PairedCrops:
        data, reader = self.config.data, self._reader(self.train_pairs)
        return PairedCrops(
            self.train_pairs, data.patch_size, self.config.train.seed, reader, self.degradation, data.rotate
        )

    def _reader(self, pairs: list[Pair]):
        if self.config.data.cache == "none":
            return read_rgb
        return cached_reader(pairs, self.config.data.cache_dir, progress=distributed.is_main() and sys.stderr.isatty())

    def _stream(self, start: int, stop: int) -> BatchStream:
        """The keys of this rank's images in the steps from ``start`` to ``stop``, a list for each micro-batch."""
        return BatchStream(
            len(self.train_pairs),
            self.config.data.batch_size,
            self.config.train.seed,
            start,
            stop,
            distributed.rank(),
            distributed.world_size(),
            self.config.train.accumulate,
        )


def worker_init(worker_id: int) -> None:
    """worker_init_fn of the DataLoaders: no OpenCV threads, which would compete with the other workers, and no signals.

    Ctrl-C and the signals of a batch system reach every process of a job. The training process handles them, and needs
    its workers until the current step is done.
    """
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
