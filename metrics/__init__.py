"""Scores of restored images, each named after exactly what it computes.

Of one image, 8-bit RGB: psnr, ssim_matlab_rgb (the paper's SSIM), ssim_per_channel, psnr_ssim_aligned (RealBlur's
protocol), niqe (by the live or MATLAB's model), LPIPS, STLPIPS. Of two sets of images: FID, KID.
"""

from .aligned import AlignmentError, psnr_ssim_aligned
from .downloads import DownloadError
from .fid import FID, KID
from .lpips import LPIPS
from .niqe import niqe
from .paper import paper_row
from .psnr import psnr, psnr_torch
from .ssim import ssim_matlab_rgb, ssim_matlab_rgb_torch, ssim_per_channel
from .stlpips import STLPIPS

__all__ = [
    "FID",
    "KID",
    "LPIPS",
    "STLPIPS",
    "AlignmentError",
    "DownloadError",
    "niqe",
    "paper_row",
    "psnr",
    "psnr_ssim_aligned",
    "psnr_torch",
    "ssim_matlab_rgb",
    "ssim_matlab_rgb_torch",
    "ssim_per_channel",
]
