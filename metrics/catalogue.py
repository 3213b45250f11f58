"""Every metric, once: its exact name, what computes it, and how it is printed.

A new metric is a file in this folder and an entry of METRICS. It is then a choice of `evaluate.py --metrics`, and a
column of scores.csv, of scores.json and of the tables. Importing this list imports no metric: `--help` needs it.

No name stands for two things: niqe_live and niqe_matlab differ by up to a factor of two, fid is over full images and
fid_whang over patches.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROFILES = ("paper", "whang")
PAIR, SINGLE, SET = "pair", "single", "set"
FULL_IMAGES = (
    "Inception-v3 features of full images, clean-fid's clean mode, squashed to 299 x 299, against the sharp images"
)
PATCHES = "Inception-v3 features of 15 patches of 256 x 240 of each image (Whang et al. 2022), against the sharp images"
OVER = "divided by the blurred inputs' score: blurred 1, sharp 0; the likeliest reading of the paper's normalisation"


@dataclass(frozen=True)
class Metric:
    """A score of restored images.

    Attributes:
        name: exact name, the column of the tables.
        kind: PAIR: of a restored image and its sharp one. SINGLE: of a restored image alone. SET: a distance between
            the Inception-v3 features of all restored images and those of all sharp ones, (N, 2048) each.
        function: "module:name" in this folder: a function of uint8 RGB images (H, W, 3) or of features, or a class
            whose objects are called like one and whose `facts` say what decides the scores (files, checksums).
        digits: printed after the point, where the paper does not print the same score with others.
        higher_is_better: the direction.
        definition: what it is, for the record.
        paper: the paper's word for it.
        flag: its name in `--metrics`, by default its own; several metrics may share one.
        part: which of several scores that the function returns.
        arguments, settings: what a class is built with: fixed values, and names of evaluate.py's settings ("device",
            "niqe_model"). What is built with a device is a network, and has `batch` for several images of one size.
        only: settings under which the flag selects this metric: profile, or niqe_model ("live" or "file").
        scale: factor.
        over_blurred: whether it is then divided by the same score of the blurred inputs.
        baseline_of: the metric that this is the value of for the blurred input, instead of the restored image.
    """

    name: str
    kind: str
    function: str
    digits: int
    higher_is_better: bool
    definition: str
    paper: str | None = None
    flag: str = ""
    part: int | None = None
    arguments: tuple = ()
    settings: tuple[str, ...] = ()
    only: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1
    over_blurred: bool = False
    baseline_of: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "flag", self.flag or self.name)

    @property
    def is_network(self) -> bool:
        return "device" in self.settings

    @property
    def images(self) -> tuple[str, ...]:
        """Which images it compares, in the order of the function's arguments: restored, sharp, blurred."""
        first = "restored" if self.baseline_of is None else "blurred"
        return (first,) if self.kind == SINGLE else (first, "sharp")

    @property
    def files(self) -> list[Path]:
        """Of the code that computes it: its own module, and those of this folder that it imports."""
        found, names = {}, [self.function.partition(":")[0]]
        while names:
            path = Path(__file__).with_name(f"{names.pop()}.py")
            if path not in found:
                found[path] = re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
                names += found[path]
        return sorted(found)

    def load(self, **settings: object) -> Callable:
        """What computes it.

        Args:
            settings: device, and niqe_model ("live" or a file).

        Raises:
            DownloadError: its weights or its package are unavailable.
            ValueError: a file that holds no model.
        """
        module, _, name = self.function.partition(":")
        found = getattr(importlib.import_module(f"metrics.{module}"), name)
        if isinstance(found, type):
            return found(*self.arguments, **{name: settings[name] for name in self.settings})
        return found


HIGHER, LOWER = True, False
ON_PAPER, ON_WHANG = {"profile": "paper"}, {"profile": "whang"}
LIVE, MATLAB = {"niqe_model": "live"}, {"niqe_model": "file"}
FID, KID = "fid:frechet_distance", "fid:kernel_distance"
SSIM, ALIGNED = "ssim:ssim_both", "aligned:psnr_ssim_aligned"
# fmt: off
METRICS: dict[str, Metric] = {metric.name: metric for metric in (  # in the order of the tables' columns
    Metric("kid", SET, KID, 5, LOWER, f"kernel distance, seed 0; {FULL_IMAGES}", only=ON_PAPER),
    Metric("kid_over_blurred", SET, KID, 3, LOWER, f"kid {OVER}", "KID",
           flag="kid", only=ON_PAPER, over_blurred=True),
    Metric("fid", SET, FID, 3, LOWER, f"Frechet distance; {FULL_IMAGES}", only=ON_PAPER),
    Metric("fid_over_blurred", SET, FID, 3, LOWER, f"fid {OVER}", "FID",
           flag="fid", only=ON_PAPER, over_blurred=True),
    Metric("kid_whang_x1000", SET, KID, 3, LOWER, f"kernel distance x 1000, seed 0; {PATCHES}",
           flag="kid", only=ON_WHANG, scale=1000),
    Metric("kid_whang_over_blurred", SET, KID, 3, LOWER, "kid_whang_x1000 divided by the blurred inputs' score",
           flag="kid", only=ON_WHANG, scale=1000, over_blurred=True),
    Metric("fid_whang", SET, FID, 3, LOWER, f"Frechet distance; {PATCHES}", flag="fid", only=ON_WHANG),
    Metric("fid_whang_over_blurred", SET, FID, 3, LOWER, "fid_whang divided by the blurred inputs' score",
           flag="fid", only=ON_WHANG, over_blurred=True),
    Metric("lpips_alex", PAIR, "lpips:LPIPS", 3, LOWER, "LPIPS v0.1, AlexNet, whole RGB image in [-1, 1]", "LPIPS",
           flag="lpips", arguments=("alex",), settings=("device",)),
    Metric("lpips_vgg", PAIR, "lpips:LPIPS", 3, LOWER, "LPIPS v0.1, VGG16, whole RGB image in [-1, 1]",
           arguments=("vgg",), settings=("device",)),
    Metric("stlpips_alex", PAIR, "stlpips:STLPIPS", 3, LOWER,
           "ST-LPIPS, AlexNet, shift-tolerant, whole RGB image in [-1, 1]", "ST-LPIPS",
           flag="stlpips", settings=("device",)),
    Metric("niqe_live", SINGLE, "niqe:NIQE", 3, LOWER,
           "NIQE, the LIVE release's model; full image, blocks of 96 x 96",
           flag="niqe", settings=("niqe_model",), only=LIVE),
    Metric("niqe_matlab", SINGLE, "niqe:NIQE", 3, LOWER,
           "NIQE, the model of MATLAB's niqe(); full image, blocks of 96 x 96", "NIQE",
           flag="niqe", settings=("niqe_model",), only=MATLAB),
    Metric("psnr", PAIR, "psnr:psnr", 2, HIGHER,
           "10 log10(255^2 / MSE) in dB over uint8 RGB; infinite for equal images", "PSNR"),
    Metric("blurred_psnr", PAIR, "psnr:psnr", 2, HIGHER, "psnr of the blurred image", baseline_of="psnr"),
    Metric("ssim_matlab_rgb", PAIR, SSIM, 3, HIGHER,
           "MATLAB's ssim of the H x W x 3 array as a volume", "SSIM", part=0),
    Metric("ssim_per_channel", PAIR, SSIM, 3, HIGHER, "MATLAB's ssim of each colour, averaged", part=1),
    Metric("psnr_aligned", PAIR, ALIGNED, 2, HIGHER,
           "RealBlur's protocol: PSNR in dB after intensity match and ECC alignment", flag="aligned", part=0),
    Metric("ssim_aligned", PAIR, ALIGNED, 3, HIGHER,
           "RealBlur's protocol: Gaussian SSIM after intensity match and ECC alignment", flag="aligned", part=1),
)}
# fmt: on
FLAGS = tuple(dict.fromkeys(metric.flag for metric in METRICS.values()))


def column_names(flags: Iterable[str], profile: str = "paper", niqe_model: str = "live") -> list[str]:
    """The exact names of the metrics that flags of `--metrics` stand for, in the order of the tables."""
    settings = {"profile": profile, "niqe_model": "live" if niqe_model == "live" else "file"}
    return [
        name
        for name, metric in METRICS.items()
        if metric.flag in flags and all(settings[key] == value for key, value in metric.only.items())
    ]
