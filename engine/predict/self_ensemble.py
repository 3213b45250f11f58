"""Self-ensemble (x8): the mean over an image's eight flips and rotations, each restored and turned back.

Timofte et al. 2016, https://arxiv.org/abs/1511.02228 (enhanced prediction); papers mark such results with a plus. A
network that scans only from left to right and from top to bottom then sees each direction both ways.
"""

import itertools
from collections.abc import Callable

import torch

DIMS = (-1, -2)


def restore_ensemble(restore: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Average ``restore`` over the eight flips and rotations of images (B, C, H, W), of H x W and of W x H."""
    total = torch.zeros_like(images)
    for flipped, transposed in itertools.product(((), DIMS[:1], DIMS[1:], DIMS), (False, True)):
        turned = images.flip(flipped)
        turned = restore(turned.transpose(*DIMS) if transposed else turned)
        total += (turned.transpose(*DIMS) if transposed else turned).flip(flipped)
    return total / 8
