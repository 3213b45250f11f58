"""KLFF: cross-level feature fusion weighted by KL divergence (paper, Section 3.4, Figure 4 b, Equation 6).

And what the paper compares it with (Table 8): AFF (Figure 4 a) and none.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .convolution import PointwiseConv
from .local_pooling import local_mean

KL_GATES = ("elementwise", "image", "batch")


class KLFF(nn.Module):
    """Fuse the current level's features with two other levels' into (B, dim, H, W) of the current level.

    Args:
        dim: the current level's channels; other_dims: the two other levels', in the order they are given to forward.
        kl_gate: what Sigmoid(KL) is taken of. "elementwise": each element's KL, Eq. 6 as written. "image": the mean
            over each image, one gate an image; equals the released code for one image. "batch": the mean over the
            whole batch, the released code to the letter: an image's result depends on its neighbours.
    """

    window: int | None = None       # of the current level's pixels to average, see ``local_pooling``; None: all

    def __init__(self, dim: int, other_dims: Sequence[int], kl_gate: str = "image"):
        super().__init__()
        if kl_gate not in KL_GATES:
            raise ValueError(f"kl_gate {kl_gate!r} is unknown; choose one of {', '.join(KL_GATES)}")
        self.kl_gate = kl_gate
        self.conv = PointwiseConv(dim, dim)
        self.conv_n1 = PointwiseConv(other_dims[0], dim)
        self.conv_n2 = PointwiseConv(other_dims[1], dim)
        self.fuse_out1 = PointwiseConv(2 * dim, dim)

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        current, other1, other2 = self.maps(current, other1, other2)
        return self.fuse(current, other1, other2, self.gate(current, other1), self.gate(current, other2))

    def maps(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The three levels after their convolutions, at the current one's size."""
        size = current.shape[-2:]
        return self.conv(current), _resize(self.conv_n1, other1, size), _resize(self.conv_n2, other2, size)

    def gate(self, current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Sigmoid[KL(other, current)]."""
        kl = divergence(current, other)
        if self.kl_gate == "image" and self.window:
            kl = kl.mean(dim=1, keepdim=True)
            for dim in (2, 3):
                means, index = local_mean(kl, self.window, dim)
                kl = means.index_select(dim, index)
        elif self.kl_gate == "image":
            kl = kl.mean(dim=(1, 2, 3), keepdim=True)
        elif self.kl_gate == "batch":
            kl = kl.mean()
        return kl.sigmoid().to(current.dtype)

    def fuse(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor, gate1: torch.Tensor,
             gate2: torch.Tensor) -> torch.Tensor:
        """What the maps and their gates become."""
        return self.fuse_out1(torch.cat([current, gate1 * other1 + gate2 * other2], dim=1))


class AFF(nn.Module):
    """Asymmetric feature fusion: all levels side by side through a 1x1 and a 3x3 convolution, which have biases.

    Cho et al. 2021, https://arxiv.org/abs/2108.05054, Section 3.4. Called as KLFF is.
    """

    def __init__(self, dim: int, other_dims: Sequence[int]):
        super().__init__()
        self.conv1 = nn.Conv2d(dim + sum(other_dims), dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        others = (F.interpolate(other, size=current.shape[-2:], mode="nearest") for other in (other1, other2))
        return self.conv2(F.relu(self.conv1(torch.cat([current, *others], dim=1))))


class Skip(nn.Module):
    """No fusion: the current level's features as they are. Called as KLFF is."""

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        return current


def divergence(current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL of each element, p (log p - log q) with p = sigmoid(current), q = sigmoid(other), in fp32 at least."""
    current, other = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (current, other))
    # log sigmoid(x) written as -softplus(-x), which is quicker than logsigmoid and as exact.
    return current.sigmoid() * (F.softplus(-other) - F.softplus(-current))


def _resize(conv: nn.Conv2d, features: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """1x1 convolution and nearest-neighbour resizing to ``size``, which commute, in the cheaper order."""
    if features.shape[-1] > size[-1]:
        return conv(F.interpolate(features, size=size, mode="nearest"))
    return F.interpolate(conv(features), size=size, mode="nearest")
