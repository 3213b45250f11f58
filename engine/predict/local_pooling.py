"""Test-time local converter (TLC): average over windows of the training crops' size instead of the full image.

The Inter-Scanner averages full rows and columns, and KLFF's gate the full image. A network trained on crops meets other
statistics in a larger image; averaging over a window around each pixel keeps them as in training. Where the window
covers the image nothing changes. Chu et al. 2022, https://arxiv.org/abs/2112.04491.

As in NAFNet's local variants (NAFNetLocal, with AvgPool2d in place of the global pooling), the classes here replace
those of a trained network: `use_local_pooling` changes the modules' classes and leaves their parameters alone. A
network whose own means were edited is refused, since they would be lost.
"""

import logging
from collections import Counter
from copy import deepcopy

import torch
from einops import rearrange
from torch import nn

from models.fusion import KLFF
from models.ops.kl_divergence import kl_divergence
from models.ops.tf32 import without_tf32
from models.streaming import TOLERANCE, agrees
from models.vssm import InterVSSM

logger = logging.getLogger(__name__)

COARSEST = 8  # pixels of the image to one position of level 3, at most
PROBE = 48  # side in pixels of the image on which the network must stay the same, at most the window's


class LocalPoolingError(ValueError):
    """An impossible window, or a network whose means cannot be replaced."""


class LocalInterVSSM(InterVSSM):
    """InterVSSM with the means of Eq. 4 over ``window`` positions of its level."""

    window: int

    def dual_scanner(self, F_h: torch.Tensor, F_v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means, index = local_mean(F_h, self.window, dim=3)
        gate_h = self.mamba(rearrange(means, "b c h w -> b w h c")).sigmoid()
        gate_h = rearrange(gate_h, "b w h c -> b c h w").index_select(3, index)
        means, index = local_mean(F_v, self.window, dim=2)
        gate_v = self.mamba(rearrange(means, "b c h w -> b h w c")).sigmoid()
        gate_v = rearrange(gate_v, "b h w c -> b c h w").index_select(2, index)
        return F_h * gate_h, F_v * gate_v


class LocalKLFF(KLFF):
    """KLFF with the mean of its gate over windows of ``window`` x ``window`` positions of its level."""

    window: int

    def gate(self, current: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.kl_gate == "elementwise":
            return super().gate(current, other)
        kl = kl_divergence(current, other).mean(dim=1, keepdim=True)
        for dim in (2, 3):
            means, index = local_mean(kl, self.window, dim)
            kl = means.index_select(dim, index)
        return kl.sigmoid().to(current.dtype)


LOCAL = {InterVSSM: LocalInterVSSM, KLFF: LocalKLFF}


def use_local_pooling(network: nn.Module, window: int) -> None:
    """Make an XYScanNet average over windows of ``window`` x ``window`` image pixels, in place.

    Modules of other classes than InterVSSM and KLFF stay as they are; a line says which were found.

    Raises:
        LocalPoolingError: the window is not a positive multiple of 8; kl_gate is batch; or the network has none of
            these modules, or edited ones, so that a window over the entire image changes its result.
    """
    if window < COARSEST or window % COARSEST:
        raise LocalPoolingError(f"local pooling needs a window of a multiple of {COARSEST} pixels, got {window}")
    if network.kl_gate == "batch":
        raise LocalPoolingError("local pooling is for single images: kl_gate batch averages over several")
    ordinary, found = deepcopy(network), Counter()
    for name, level in network.named_children():
        factor = network.unshuffle * 2 ** (int(name[-1]) - 1) if name[-1].isdigit() else 1
        for module in level.modules():
            if type(module) in LOCAL:
                found[type(module).__name__] += 1
                module.__class__ = LOCAL[type(module)]
                module.window = window // factor
    if not found:
        raise LocalPoolingError("local pooling replaces the means of InterVSSM and KLFF, and this network has neither")
    with without_tf32():
        same = agrees(ordinary, network, TOLERANCE, (min(window, PROBE),) * 2)
    if not same:
        raise LocalPoolingError(
            "local pooling replaces InterVSSM.dual_scanner and KLFF.gate, which were edited; without it, or with the "
            "same edit in engine/predict/local_pooling.py, the network restores as it was trained"
        )
    logger.info("averages over %d pixels in %s", window, ", ".join(f"{n} {name}" for name, n in found.items()))


def local_mean(x: torch.Tensor, window: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of all windows along ``dim``, and the index of each position's window.

    A position's window has it in its middle; near an end, it is the last one inside. A window at least as long as
    ``dim`` is all of it.

    Returns:
        The means, shorter along ``dim`` by window - 1; indices of them, as many as ``dim`` has positions.
    """
    size = x.shape[dim]
    if window >= size:
        return x.mean(dim, keepdim=True), torch.zeros(size, dtype=torch.long, device=x.device)
    # Differences of running sums cost the same for every window; double precision keeps them from losing digits.
    sums = x.cumsum(dim, dtype=torch.float64)
    first = sums.narrow(dim, window - 1, 1)
    later = sums.narrow(dim, window, size - window) - sums.narrow(dim, 0, size - window)
    index = (torch.arange(size, device=x.device) - window // 2).clamp(0, size - window)
    return (torch.cat([first, later], dim) / window).to(x.dtype), index
