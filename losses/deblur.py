"""The training loss: Charbonnier + 0.05 edge + 0.0005 contrast (paper, Section 4.1, after DeblurDiNAT)."""

import torch
import torch.nn.functional as F
from torch import nn

from .charbonnier import charbonnier
from .contrast import ContrastLoss, blur_mask
from .edge import edge

PIXEL_TERMS = {"charbonnier": charbonnier, "mse": F.mse_loss}


class DeblurLoss(nn.Module):
    """The weighted sum and its terms; a weight of 0 leaves a term out, and with it what it needs.

    pixel: the pixel-wise term, of weight 1: charbonnier, or mse, the squared error, which is what PSNR counts (not the
        paper's). A squared error is a tenth as large or less, and the other weights are to be chosen with it.
    """

    def __init__(
        self,
        edge_weight: float = 0.05,
        contrast_weight: float = 0.0005,
        features: nn.Module | None = None,
        pixel: str = "charbonnier",
    ):
        super().__init__()
        self.pixel = pixel
        self.edge_weight, self.contrast_weight = edge_weight, contrast_weight
        self.contrast = ContrastLoss(features) if contrast_weight else None

    def forward(
        self, restored: torch.Tensor, sharp: torch.Tensor, blurred: torch.Tensor, mask_sum: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(total, terms by name, unweighted) for images (B, 3, H, W) in [-0.5, 0.5], computed in fp32 at least.

        Args:
            mask_sum: see ``ContrastLoss.forward``; for batches that are shares of a larger one.
        """
        with torch.autocast(restored.device.type, enabled=False):
            restored = restored.to(sharp.dtype)
            terms = {self.pixel: PIXEL_TERMS[self.pixel](restored, sharp)}
            total = terms[self.pixel]
            if self.edge_weight:
                terms["edge"] = edge(restored, sharp)
                total = total + self.edge_weight * terms["edge"]
            if self.contrast is not None:
                terms["contrast"] = self.contrast(restored, sharp, blurred, mask_sum)
                total = total + self.contrast_weight * terms["contrast"]
        return total, terms

    def mask_sum(self, sharp: torch.Tensor, blurred: torch.Tensor) -> torch.Tensor:
        """What the contrast term of this share of a batch would divide by; 0 without that term."""
        return blur_mask(sharp, blurred).sum() if self.contrast is not None else sharp.new_zeros(())
