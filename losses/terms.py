"""Registry of loss terms. A decorator registers a function or a module:

    @term("fourier")
    def fourier(restored, sharp):
        return (fft2(restored) - fft2(sharp)).abs().mean()

``loss.weights={fourier: 0.1}`` trains with it and logs it. A file of its own is imported in ``losses/__init__.py``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | type[nn.Module]
TERMS: dict[str, Term] = {"mse": F.mse_loss}  # the squared error, which PSNR counts; not the paper's


class TermError(TypeError):
    """A term whose value is not one number."""


def term(name: str) -> Callable[[Term], Term]:
    """Register a scalar loss of images (B, 3, H, W) in [-0.5, 0.5] under ``name``.

    It is a function of (restored, sharp); or a module class, built without arguments, whose forward takes (restored,
    sharp, blurred, mask_sum), of which the last is explained in ``ContrastLoss``.
    """

    def register(loss: Term) -> Term:
        if name in TERMS:
            raise ValueError(f"there is already a loss term {name!r}")
        TERMS[name] = loss
        return loss

    return register
