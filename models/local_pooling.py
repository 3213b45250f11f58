"""Local pooling: means over windows of the training crops' size instead of the whole image, for prediction.

The Inter-Scanner averages whole rows and columns, and KLFF's gate the whole image. A network trained on crops meets
other statistics in a larger image; averaging each pixel's own window gives it those it knows (Chu et al. 2022,
https://arxiv.org/abs/2112.04491, there called TLC). Where the window covers the image nothing changes.
"""
import torch
from torch import nn

COARSEST = 8    # pixels of the image to one position of level 3, at most


def set_local_pooling(network: nn.Module, window: int | None) -> None:
    """Lets an XYScanNet average over windows of ``window`` image pixels in both directions; None: over all again.

    Raises ValueError for a window that is no positive multiple of 8, and for a gate over the whole batch.
    """
    if window is not None and (window < COARSEST or window % COARSEST):
        raise ValueError(f"local pooling needs a window of a multiple of {COARSEST} pixels, got {window}")
    if window is not None and network.kl_gate == "batch":
        raise ValueError("local pooling is for single images: kl_gate batch averages over several")
    for name, level in network.named_children():
        factor = network.unshuffle * 2 ** (int(name[-1]) - 1) if name[-1].isdigit() else 1
        for module in level.modules():
            if hasattr(module, "window"):
                module.window = window and window // factor


def local_mean(x: torch.Tensor, window: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means along ``dim`` of all windows that lie inside, and which of them is each position's.

    A position's window has it in its middle; near an end, it is the last one that lies inside.
    Returns: (the means, shorter by window - 1; indices of them, as long as ``dim``). All of ``dim`` is one window where
        it is not longer.
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
