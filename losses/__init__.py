"""Losses: pure functions of images in [-0.5, 0.5], and their weighted sum. Importing a term's file registers it."""

from .charbonnier import charbonnier
from .contrast import ContrastLoss
from .deblur import DeblurLoss
from .edge import edge
from .terms import TERMS, term

__all__ = ["TERMS", "ContrastLoss", "DeblurLoss", "charbonnier", "edge", "term"]
