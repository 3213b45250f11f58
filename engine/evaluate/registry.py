"""What is measured: the data sets of the paper's tables, the exact names of the scores, and how each comes about.

A name never stands for two things: niqe_live and niqe_matlab differ by up to a factor of two, fid is over full images
and fid_whang over patches.
"""

from __future__ import annotations

from dataclasses import dataclass

PROFILES = ("paper", "whang")


@dataclass(frozen=True)
class Measure:
    """A column of scores: its definition, how it is printed, and the paper's word for it where it has the same."""

    definition: str
    digits: int
    higher_is_better: bool
    paper: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A test set: key of metrics/paper_numbers.yaml -> this for the paper's."""

    title: str
    table: int | None  # the paper's
    count: int | None  # images of the whole test set; None where nobody says
    flags: tuple[str, ...]  # what --metrics stands for unless it is given
    variant: str | None = None  # RealBlur's


FULL = ("psnr", "ssim_matlab_rgb", "ssim_per_channel", "niqe", "lpips", "fid", "kid")
REALBLUR = ("aligned", "stlpips", "niqe")
DATA_SETS = {
    "gopro": DataSet("GoPro", 1, 1111, FULL),
    "hide": DataSet("HIDE", 2, 2025, FULL),
    "rwbi": DataSet("RWBI", 3, None, ("niqe",)),
    "realblur_j": DataSet("RealBlur-J", 4, 980, REALBLUR, "J"),
    "realblur_r": DataSet("RealBlur-R", 4, 980, REALBLUR, "R"),
}
OWN = DataSet("images", None, None, FULL)  # of no data set of the paper


def data_set(name: str | None) -> DataSet:
    """The data set of a key of DATA_SETS; None for anybody's own images."""
    return DATA_SETS[name] if name else OWN


WHOLE = "Inception-v3 features of full images, clean-fid's clean mode, squashed to 299 x 299, against the sharp images"
PATCHES = "Inception-v3 features of 15 patches of 256 x 240 of each image (Whang et al. 2022), against the sharp images"
OVER = "divided by the blurred inputs' score: blurred 1, sharp 0; the likeliest reading of the paper's normalisation"
MEASURES = {
    "kid": Measure(f"kernel distance, seed 0; {WHOLE}", 5, False),
    "kid_over_blurred": Measure(f"kid {OVER}", 3, False, "KID"),
    "fid": Measure(f"Frechet distance; {WHOLE}", 3, False),
    "fid_over_blurred": Measure(f"fid {OVER}", 3, False, "FID"),
    "kid_whang_x1000": Measure(f"kernel distance x 1000, seed 0; {PATCHES}", 3, False),
    "kid_whang_over_blurred": Measure("kid_whang_x1000 divided by the blurred inputs' score", 3, False),
    "fid_whang": Measure(f"Frechet distance; {PATCHES}", 3, False),
    "fid_whang_over_blurred": Measure("fid_whang divided by the blurred inputs' score", 3, False),
    "lpips_alex": Measure("LPIPS v0.1, AlexNet, whole RGB image in [-1, 1]", 3, False, "LPIPS"),
    "lpips_vgg": Measure("LPIPS v0.1, VGG16, whole RGB image in [-1, 1]", 3, False),
    "stlpips_alex": Measure("ST-LPIPS, AlexNet, shift-tolerant, whole RGB image in [-1, 1]", 3, False, "ST-LPIPS"),
    "niqe_live": Measure("NIQE, the LIVE release's model; full image, blocks of 96 x 96", 3, False),
    "niqe_matlab": Measure("NIQE, the model of MATLAB's niqe(); full image, blocks of 96 x 96", 3, False, "NIQE"),
    "psnr": Measure("10 log10(255^2 / MSE) in dB over uint8 RGB; infinite for equal images", 2, True, "PSNR"),
    "ssim_matlab_rgb": Measure("MATLAB's ssim of the H x W x 3 array as a volume", 3, True, "SSIM"),
    "ssim_per_channel": Measure("MATLAB's ssim of each colour, averaged", 3, True),
    "psnr_aligned": Measure("RealBlur's protocol: PSNR in dB after intensity match and ECC alignment", 2, True),
    "ssim_aligned": Measure("RealBlur's protocol: Gaussian SSIM after intensity match and ECC alignment", 3, True),
}
PAIRWISE = ("psnr", "ssim_matlab_rgb", "ssim_per_channel")
ALIGNED = ("psnr_aligned", "ssim_aligned")
NETWORKS = ("lpips_alex", "lpips_vgg", "stlpips_alex")
FLAGS = (*FULL, "lpips_vgg", "aligned", "stlpips")


def column_names(flags: tuple[str, ...], profile: str, niqe_model: str) -> list[str]:
    """The exact names of what the flags ask for, in the order of the tables."""
    names = {
        "niqe": ("niqe_live" if niqe_model == "live" else "niqe_matlab",),
        "lpips": ("lpips_alex",),
        "stlpips": ("stlpips_alex",),
        "aligned": ALIGNED,
        "fid": ("fid", "fid_over_blurred") if profile == "paper" else ("fid_whang", "fid_whang_over_blurred"),
        "kid": ("kid", "kid_over_blurred") if profile == "paper" else ("kid_whang_x1000", "kid_whang_over_blurred"),
    }
    wanted = {name for flag in flags for name in names.get(flag, (flag,))}
    return [name for name in MEASURES if name in wanted]
