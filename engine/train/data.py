"""What a run learns from and is scored on: the pairs of its folders, and batches of them in an order that is fixed."""

import re
import sys

import torch
from torch.utils.data import DataLoader

from datasets.cache import cached_reader
from datasets.degradation import parse_degradation, sharp_pairs
from datasets.images import read_rgb
from datasets.layouts import LayoutError, Pair, find_pairs
from datasets.paired import PairedCrops, WholeBatches, WholePairs, check_headers, worker_init
from datasets.stream import BatchStream, epoch_of, iterations_for

from .. import distributed
from ..config import Config

# What PyTorch says of a reading process that has ended, at whatever moment it finds out.
READER_ENDED = re.compile(r"DataLoader worker \(pid[^)]*\) [^\n]*")


class ReaderError(RuntimeError):
    """A reading process has ended. The message says which and how."""


def reader_ended(error: BaseException) -> ReaderError | None:
    """The error to raise where ``error`` is PyTorch's word that a reading process has ended; None for any other."""
    said = isinstance(error, RuntimeError) and READER_ENDED.match(str(error))
    return (
        ReaderError(
            f"{said[0].rstrip(' .')}: perhaps the system's memory was used up; try fewer data.workers, "
            "data.workers=0 to read without other processes"
        )
        if said
        else None
    )


class Batches:
    """The batches of a loader whose data set is a `WholeBatches`; the errors that those hold are raised here."""

    def __init__(self, loader: DataLoader):
        self._batches = iter(loader)  # forks processes

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> list[torch.Tensor]:
        batch = next(self._batches)
        if isinstance(batch, Exception):
            self._batches = iter(())  # ends the processes, which the error's traceback would keep
            raise batch
        return batch


class TrainingData:
    """The images of one stage, for this rank.

    Raises: LayoutError for folders that hold no pairs as the configuration says.
    """

    def __init__(self, config: Config, pin_memory: bool):
        self.config, self.pin_memory = config, pin_memory
        self.degradation = parse_degradation(config.data.degradation) if config.data.degradation else None
        self.train_pairs = self._find_pairs("train", "train")
        self.val_pairs = self._find_pairs("val", "test") if config.data.val else []
        self.iterations = config.train.iterations or iterations_for(
            config.train.epochs, len(self.train_pairs), config.data.batch_size
        )

    def _find_pairs(self, key: str, split: str) -> list[Pair]:
        """The pairs of data.train or data.val, all with a sharp image."""
        source = getattr(self.config.data, key)
        try:
            if self.degradation:
                return sharp_pairs(source)
            pairs = find_pairs(source, split, variant=self.config.data.variant)
        except LayoutError as error:
            raise LayoutError(
                f"data.{key}: {error}. Unpack the data set there, or name its folder: data.{key}=FOLDER"
            ) from error
        alone = [pair.blurred for pair in pairs if pair.sharp is None]
        if alone:
            raise LayoutError(
                f"data.{key}: {len(alone)} images have no sharp one to learn from or compare with, the first {alone[0]}"
            )
        return pairs

    def check(self) -> None:
        """Reads every image's header; ImageError for one that is damaged or too small."""
        progress = sys.stderr.isatty()
        check_headers(self.train_pairs, self.config.data.patch_size, progress=progress)
        check_headers(self.val_pairs, self.degradation.multiple if self.degradation else None, progress=progress)

    def batches(self, start: int) -> Batches:
        """This rank's micro-batches from step ``start`` to the end, decoded ahead by worker processes."""
        data = self.config.data
        crops = PairedCrops(
            self.train_pairs, data.patch_size, self.config.train.seed, self._reader(self.train_pairs), self.degradation
        )
        return Batches(
            DataLoader(
                WholeBatches(crops),
                sampler=self._stream(start, self.iterations),
                batch_size=None,
                num_workers=data.workers,
                worker_init_fn=worker_init,
                pin_memory=self.pin_memory,
                prefetch_factor=4 if data.workers else None,
                generator=torch.Generator(),
            )
        )  # its own: the global generator stays what the run makes it

    def validation_images(self) -> WholePairs:
        return WholePairs(self.val_pairs, self._reader(self.val_pairs), self.degradation)

    def names(self, iteration: int, micro_step: int) -> list[str]:
        """Which images this rank saw in a micro-step of a step."""
        keys = list(self._stream(iteration, iteration + 1))[micro_step]
        return [self.train_pairs[index].name for _, index in keys]

    def epoch(self, iteration: int) -> int:
        return epoch_of(iteration, len(self.train_pairs), self.config.data.batch_size)

    def _reader(self, pairs: list[Pair]):
        if self.config.data.cache == "none":
            return read_rgb
        return cached_reader(pairs, self.config.data.cache_dir, progress=distributed.is_main() and sys.stderr.isatty())

    def _stream(self, start: int, stop: int) -> BatchStream:
        """Which images this rank sees in the steps from ``start`` to ``stop``, a list a micro-batch."""
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
