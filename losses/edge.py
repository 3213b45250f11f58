"""Edge loss: Charbonnier of two images' Laplacians (as in MPRNet, Zamir et al. 2021, Equation 4)."""

import functools

import torch
import torch.nn.functional as F

from .charbonnier import charbonnier
from .terms import term

BINOMIAL = (0.05, 0.25, 0.4, 0.25, 0.05)  # Burt & Adelson 1983, a = 0.4


@term("edge")
def edge(restored: torch.Tensor, sharp: torch.Tensor) -> torch.Tensor:
    """Scalar, for images (B, C, H, W) of one shape."""
    return charbonnier(laplacian(restored), laplacian(sharp))


def laplacian(image: torch.Tensor) -> torch.Tensor:
    """image - G(4 keep_even(G(image))): what one level of a Gaussian pyramid loses. Same shape."""
    low = _gaussian(image)
    kept = torch.zeros_like(low)
    kept[..., ::2, ::2] = 4 * low[..., ::2, ::2]
    return image - _gaussian(kept)


def _gaussian(image: torch.Tensor) -> torch.Tensor:
    """5 x 5 outer product of BINOMIAL, per channel, edges replicated; one axis after the other."""
    channels = image.shape[1]
    taps = _taps(image.dtype, image.device).expand(channels, 1, 5)
    image = F.conv2d(F.pad(image, (2, 2, 0, 0), mode="replicate"), taps[:, :, None, :], groups=channels)
    return F.conv2d(F.pad(image, (0, 0, 2, 2), mode="replicate"), taps[:, :, :, None], groups=channels)


@functools.cache  # a copy to a GPU makes the host wait for it
def _taps(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # kept beyond it
        return torch.tensor(BINOMIAL, dtype=dtype, device=device)
