"""The training loss: Charbonnier + 0.05 edge + 0.0005 contrast (paper, Section 4.1, after DeblurDiNAT)."""

from collections.abc import Mapping

import torch
from torch import nn

from .contrast import blur_mask
from .terms import TERMS, TermError

PAPER = {"charbonnier": 1.0, "edge": 0.05, "contrast": 0.0005}


class DeblurLoss(nn.Module):
    """A weighted sum of terms.

    Args:
        weights: the weight of each term, by its name in `TERMS`. A weight of 0 leaves a term out, and with it what it
            needs (VGG19 for contrast). A squared error (mse, what PSNR counts) is a tenth of Charbonnier's value or
            less: choose the other weights accordingly.
    """

    def __init__(self, weights: Mapping[str, float] = PAPER):
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        chosen = {name: TERMS[name] for name in self.weights}
        self.terms = {name: loss() if isinstance(loss, type) else loss for name, loss in chosen.items()}
        self.term_modules = nn.ModuleList(term for term in self.terms.values() if isinstance(term, nn.Module))

    def forward(
        self, restored: torch.Tensor, sharp: torch.Tensor, blurred: torch.Tensor, mask_sum: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(total, unweighted terms by name) for images (B, 3, H, W) in [-0.5, 0.5], in the sharp ones' dtype.

        Args:
            mask_sum: see ``ContrastLoss.forward``; for batches that are shares of a larger one.

        Raises:
            TermError: a term gives an image, say, instead of one number.
        """
        with torch.autocast(restored.device.type, enabled=False):
            restored = restored.to(sharp.dtype)
            values = {
                name: term(restored, sharp, blurred, mask_sum) if isinstance(term, nn.Module) else term(restored, sharp)
                for name, term in self.terms.items()
            }
            for name, value in values.items():
                if value.ndim:
                    raise TermError(f"the loss's term {name} has the shape {tuple(value.shape)}; take its mean")
            return sum(self.weights[name] * value for name, value in values.items()), values

    def mask_sum(self, sharp: torch.Tensor, blurred: torch.Tensor) -> torch.Tensor:
        """What the contrast term divides by for this share of a batch; 0 without that term."""
        return blur_mask(sharp, blurred).sum() if "contrast" in self.terms else sharp.new_zeros(())
