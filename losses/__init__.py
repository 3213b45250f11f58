"""Losses: pure functions of images in [-0.5, 0.5], and their weighted sum."""

from .charbonnier import charbonnier
from .contrast import ContrastLoss
from .deblur import DeblurLoss
from .edge import edge

__all__ = ["ContrastLoss", "DeblurLoss", "charbonnier", "edge"]
