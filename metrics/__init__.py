"""Scores of restored images: pure functions of 8-bit RGB images, each named after exactly what it computes."""
from .paper import paper_row
from .psnr import psnr, psnr_torch
from .ssim import ssim_matlab_rgb, ssim_matlab_rgb_torch, ssim_per_channel

__all__ = ["paper_row", "psnr", "psnr_torch", "ssim_matlab_rgb", "ssim_matlab_rgb_torch", "ssim_per_channel"]
