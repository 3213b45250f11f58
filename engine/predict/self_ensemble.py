"""Self-ensemble: the mean over an image's eight flips and rotations, restored one by one and turned back.

Timofte et al. 2016, https://arxiv.org/abs/1511.02228 (enhanced prediction); papers mark such results with a plus. So a
network that scans only from left to right and from top to bottom sees each direction both ways.
"""

import itertools
from collections.abc import Callable

import torch

DIMS = (-1, -2)


def restore_ensemble(restore: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """What ``restore`` makes of images (B, C, H, W), averaged over the eight; it sees H x W and W x H."""
    total = torch.zeros_like(images)
    for flipped, transposed in itertools.product(((), DIMS[:1], DIMS[1:], DIMS), (False, True)):
        turned = images.flip(flipped)
        turned = restore(turned.transpose(*DIMS) if transposed else turned)
        total += (turned.transpose(*DIMS) if transposed else turned).flip(flipped)
    return total / 8
