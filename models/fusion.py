"""KLFF, cross-level feature fusion weighted by KL divergence (paper, Section 3.4, Figure 4 b, Equation 6).

Also its alternatives of Table 8: AFF (Figure 4 a) and no fusion.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

from .blocks import Conv1x1
from .ops.kl_divergence import kl_divergence
from .registry import Options, fusion

KL_GATES = ("elementwise", "image", "batch")


@fusion("klff")
class KLFF(nn.Module):
    """Eq. 6: W_p {Sigmoid[KL(oth1, cur)] * oth1 + Sigmoid[KL(oth2, cur)] * oth2 || cur}.

    The current level's features (B, dim, H, W) and two other levels' of ``other_dims`` channels -> (B, dim, H, W).

    Args:
        dim: channels of the current level.
        other_dims: channels of the two other levels, in the order of forward's arguments.
        options: its ``kl_gate`` says over what KL is averaged. "elementwise": nothing, Eq. 6 as written. "image": each
            image; equals the released code for single images. "batch": the whole batch, exactly as the released code,
            so that an image's result depends on the others in its batch.
    Raises:
        ValueError: kl_gate is none of these.
    """

    def __init__(self, dim: int, other_dims: Sequence[int], options: Options = Options()):  # noqa: B008
        super().__init__()
        if options.kl_gate not in KL_GATES:
            raise ValueError(f"kl_gate {options.kl_gate!r} is unknown; choose one of {', '.join(KL_GATES)}")
        self.kl_gate = options.kl_gate
        self.conv = Conv1x1(dim, dim)
        self.conv_n1 = Conv1x1(other_dims[0], dim)
        self.conv_n2 = Conv1x1(other_dims[1], dim)
        self.fuse_out1 = Conv1x1(2 * dim, dim)  # W_p

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        current, other1, other2 = self.align(current, other1, other2)
        others = self.gate(current, other1) * other1 + self.gate(current, other2) * other2
        return self.fuse_out1(torch.cat([current, others], dim=1))

    def align(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """X' of Eq. 6: the three levels convolved and resized to (B, dim, H, W)."""
        size = current.shape[-2:]
        return self.conv(current), resize(self.conv_n1, other1, size), resize(self.conv_n2, other2, size)

    def gate(self, current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Sigmoid[KL(other, current)], broadcastable to (B, dim, H, W)."""
        kl = kl_divergence(current, other)
        if self.kl_gate != "elementwise":
            kl = reduce(kl, "b c h w -> b 1 1 1" if self.kl_gate == "image" else "b c h w -> 1 1 1 1", "mean")
        return kl.sigmoid().to(current.dtype)


@fusion("aff")
class AFF(nn.Module):
    """Asymmetric feature fusion: the concatenated levels through a 1x1 and a 3x3 convolution with biases.

    Cho et al. 2021, https://arxiv.org/abs/2108.05054, Section 3.4. Arguments and shapes as KLFF's.
    """

    def __init__(self, dim: int, other_dims: Sequence[int], options: Options | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(dim + sum(other_dims), dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        others = (F.interpolate(other, size=current.shape[-2:], mode="nearest") for other in (other1, other2))
        return self.conv2(F.relu(self.conv1(torch.cat([current, *others], dim=1))))


@fusion("none")
class Skip(nn.Module):
    """No fusion: the current level's features unchanged. Arguments and shapes as KLFF's."""

    def __init__(self, dim: int, other_dims: Sequence[int], options: Options | None = None):
        super().__init__()

    def forward(self, current: torch.Tensor, other1: torch.Tensor, other2: torch.Tensor) -> torch.Tensor:
        return current


def resize(conv: nn.Module, features: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """A 1x1 convolution and nearest-neighbour resizing to ``size`` commute: apply them in the cheaper order."""
    if features.shape[-1] > size[-1]:
        return conv(F.interpolate(features, size=size, mode="nearest"))
    return F.interpolate(conv(features), size=size, mode="nearest")
