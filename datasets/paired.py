"""Image pairs as PyTorch datasets."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from .augmentation import augment, random_crop
from .degradation import Degradation
from .images import ImageError, read_rgb
from .layouts import Pair

Reader = Callable[[Path], np.ndarray]  # path -> uint8 (H, W, 3) RGB


class PairedCrops(Dataset):
    """Random augmented crops of pairs, for training.

    An item is addressed by (epoch, index), and its randomness is seeded with [seed, epoch, index] alone: resuming and
    the number of workers and processes do not change it.

    Args:
        pairs: image pairs, each with a sharp image.
        patch_size: height and width of the crops, in pixels.
        seed: of crops, augmentation and degradation.
        read: path -> uint8 (H, W, 3) RGB, such as ``cache.CachedReader``.
        degradation: computes the blurred crop from the augmented sharp one; the pairs' blurred images are not read.
        rotate: probability of a rotation, see ``augmentation.augment``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        patch_size: int,
        seed: int,
        read: Reader = read_rgb,
        degradation: Degradation | None = None,
        rotate: float = 1.0,
    ) -> None:
        self.pairs, self.patch_size, self.seed, self.read = pairs, patch_size, seed, read
        self.degradation, self.rotate = degradation, rotate

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(epoch, index) -> (blurred, sharp), contiguous uint8 (3, P, P).

        Raises:
            ImageError: an image cannot be read, or the two do not fit together.
        """
        epoch, index = key
        pair = self.pairs[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            sharp = self.read(pair.sharp)  # type: ignore[arg-type]  # `find_pairs` was asked for it
            blurred = sharp if self.degradation else self.read(pair.blurred)
            blurred, sharp = augment(*random_crop(blurred, sharp, self.patch_size, rng), rng, self.rotate)
            if self.degradation:
                blurred = self.degradation(sharp, rng)
        except ImageError:
            raise
        except ValueError as error:
            raise ImageError(f"{pair.blurred}: {error}") from error
        return _to_tensor(blurred), _to_tensor(sharp)


class WholeBatches(Dataset):
    """Batches of a dataset's items, addressed by lists of keys.

    Errors of images, files and memory are returned instead of raised, and the consumer of the batches raises them: a
    DataLoader would convert an error in a worker to a text with a traceback.
    """

    def __init__(self, items: Dataset) -> None:
        self.items = items

    def __getitem__(self, keys: Sequence) -> list[torch.Tensor] | Exception:
        try:
            return default_collate([self.items[key] for key in keys])
        except (ImageError, OSError, MemoryError) as error:
            return error


class WholePairs(Dataset):
    """Full images, for validation. Sizes may vary: load them with batch_size=None.

    Args:
        pairs: image pairs, each with a sharp image.
        read: path -> uint8 (H, W, 3) RGB.
        degradation: computes the blurred image from the sharp one, reproducibly.
    """

    def __init__(self, pairs: Sequence[Pair], read: Reader = read_rgb, degradation: Degradation | None = None) -> None:
        self.pairs, self.read, self.degradation = pairs, read, degradation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (blurred, sharp), contiguous uint8 (3, H, W).

        Raises:
            ImageError: an image cannot be read.
        """
        pair = self.pairs[index]
        sharp = self.read(pair.sharp)  # type: ignore[arg-type]  # `find_pairs` was asked for it
        if self.degradation:
            blurred, sharp = self.degradation.whole(sharp, index)
        else:
            blurred = self.read(pair.blurred)
        return _to_tensor(blurred), _to_tensor(sharp)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # A copy: the source may be a read-only view, and pinning and stacking need contiguous memory.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
