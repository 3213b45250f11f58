"""What LPIPS and ST-LPIPS share: a network that owns its weights, fed with 8-bit images, one distance a pair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from .checks import check_rgb_pair

SMALLEST = 32  # the shorter side in pixels that leaves something after the networks' last pooling


class PerceptualDistance:
    """A distance in the features of a network: 0 for equal images, lower is better.

    Args:
        name: the exact name of the scores.
        network: (B, 3, H, W), (B, 3, H, W) in [-1, 1], RGB -> a distance of each pair, B numbers of any shape.
        backbone: files, checksums and versions of the network.
        device: where the network runs, in float32.

    Attributes:
        facts: what decides the scores, for their record.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        backbone: dict[str, str],
        device: str | torch.device,
    ):
        self.name, self.device = name, torch.device(device)
        self.facts = network_facts(backbone, device)
        self._network = network

    def __call__(self, restored: np.ndarray, sharp: np.ndarray) -> float:
        """The distance of two uint8 RGB images (H, W, 3).

        Raises:
            ValueError: another dtype or shape.
        """
        return self.batch([restored], [sharp])[0]

    def batch(self, restored: Sequence[np.ndarray], sharp: Sequence[np.ndarray]) -> list[float]:
        """The distance of each pair of uint8 RGB images, all of one size (H, W, 3).

        Raises:
            ValueError: another dtype or shape, a side shorter than 32, two sizes, or two counts.
        """
        if len(restored) != len(sharp):
            raise ValueError(f"the batches differ in length: restored {len(restored)}, sharp {len(sharp)}")
        for pair in zip(restored, sharp, strict=True):
            check_rgb_pair(*pair)
            if min(pair[0].shape[:2]) < SMALLEST:
                raise ValueError(
                    f"{self.name} needs images of at least {SMALLEST} x {SMALLEST}, got "
                    f"{pair[0].shape[1]} x {pair[0].shape[0]}"
                )
        if len(shapes := {image.shape for image in restored}) > 1:
            raise ValueError(f"a batch is of images of one size, got {sorted(shapes)}")
        if not restored:
            return []
        with torch.inference_mode(), full_precision(self.device):
            distances = self._network(self._tensor(restored), self._tensor(sharp))
        return distances.flatten().tolist()

    def _tensor(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        batch = torch.from_numpy(np.stack(images)).to(self.device)
        return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def network_facts(backbone: dict[str, str], device: str | torch.device) -> dict[str, object]:
    """What decides the scores by a network: its files, PyTorch's version, the kind of device."""
    return {"backbone": backbone, "torch": torch.__version__, "device": torch.device(device).type}


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Convolutions in float32 proper: by default cuDNN rounds their inputs to TF32's ten bits, which moves scores."""
    if device.type == "cpu":  # several threads score there, and the flags are the process's
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
