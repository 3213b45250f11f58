"""Contrast loss: pull the restored image towards the sharp one and away from the blurred one, in VGG19's features.

The paper's perceptual term (Section 4.1, after DeblurDiNAT), only where the image is blurred at all. Features are
VGG19's (Simonyan & Zisserman 2015) up to the ReLU after conv3_1, with torchvision's ImageNet weights, frozen; images
go in as they are, in [-0.5, 0.5], without ImageNet's normalisation.
"""

import hashlib
import logging
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .terms import term

BLUR_THRESHOLD = 0.01  # mean absolute difference of sharp and blurred above which a pixel counts as blurred
EPSILON = 1e-7
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
VGG19_FILE = Path("models") / "vgg19-dcbb9e9d.pth"  # named by torchvision after its SHA-256's beginning

logger = logging.getLogger(__name__)


class FeaturesError(ValueError):
    """The VGG19 weights file exists but cannot be used. The message names it, what is wrong, and what to do."""


@term("contrast")
class ContrastLoss(nn.Module):
    """sum(ratio * mask) / sum(mask), ratio = |f(restored) - f(sharp)| / |f(restored) - f(blurred)| by feature pixel.

    Args:
        features: a frozen (B, 3, H, W) -> (B, 256, H/4, W/4) network; VGG19's first twelve layers by default.
    """

    def __init__(self, features: nn.Module | None = None):
        super().__init__()
        self.features = (vgg19_features() if features is None else features).eval().requires_grad_(False)

    def forward(
        self, restored: torch.Tensor, sharp: torch.Tensor, blurred: torch.Tensor, mask_sum: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A scalar for images (B, 3, H, W) in [-0.5, 0.5]; 0 where nothing is blurred.

        Args:
            mask_sum: what to divide by instead of this batch's own sum(mask). A batch split into equal shares has
                one loss however it is split if each share divides by the mean of all the shares' sums, and the
                shares' losses are averaged.
        """
        mask = blur_mask(sharp, blurred)
        with torch.no_grad():
            f_sharp, f_blurred = self.features(sharp), self.features(blurred)
        f_restored = self.features(restored)
        d_pos = (f_restored - f_sharp).abs().mean(dim=1, keepdim=True)
        d_neg = (f_restored - f_blurred).abs().mean(dim=1, keepdim=True)
        ratio = d_pos / (d_neg + EPSILON)
        total = (ratio * mask).sum()
        mask_sum = mask.sum() if mask_sum is None else mask_sum
        return torch.where(mask_sum > 0, total / mask_sum.clamp(min=EPSILON), total * 0)


@torch.no_grad()
def blur_mask(sharp: torch.Tensor, blurred: torch.Tensor) -> torch.Tensor:
    """(B, 1, H/4, W/4) in [0, 1]: 1 where sharp and blurred differ, shrunk bilinearly to the features' size."""
    mask = ((sharp - blurred).abs().mean(dim=1, keepdim=True) > BLUR_THRESHOLD).to(sharp.dtype)
    size = (sharp.shape[-2] // 4, sharp.shape[-1] // 4)
    return F.interpolate(mask, size=size, mode="bilinear", align_corners=False)


def find_vgg19(path: Path = VGG19_FILE) -> Path | None:
    """The file of VGG19's weights: ``path``, or torchvision's download; None where neither is there."""
    downloaded = Path(torch.hub.get_dir()) / "checkpoints" / VGG19_FILE.name
    return next((file for file in (path, downloaded) if file.exists()), None)


def vgg19_features(path: Path = VGG19_FILE) -> nn.Sequential:
    """torchvision's VGG19.features[0..11] with ImageNet weights, from ``path``, else downloaded and cached.

    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded; names both remedies.
        FeaturesError: the file is there, and is damaged or another network's.
    """
    found = find_vgg19(path)
    layers = vgg19_layers()
    layers.load_state_dict(_download() if found is None else _read(found, layers.state_dict()))
    return layers


def _read(path: Path, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers' weights in a file of VGG19's; FeaturesError unless all are there, of the right shape, and finite."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: content[f"features.{name}"] for name in expected}
        for name, value in state.items():
            if (
                value.shape != expected[name].shape
                or value.layout != torch.strided
                or value.is_meta
                or not value.is_floating_point()
                or not value.float().isfinite().all()
            ):
                raise ValueError(f"features.{name} is not a tensor of {tuple(expected[name].shape)} finite numbers")
    except Exception as error:  # torch.load raises anything, and so does content that is not a dictionary of tensors
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # the machine's fault, not the file's
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error) if type(error) is ValueError else ""
        raise FeaturesError(
            f"{path}: not VGG19's weights, or damaged ({reason or type(error).__name__}). Remove it, so that it is "
            "downloaded again, or train without the contrast term: loss.contrast_weight=0"
        ) from error
    if not _sha256(path).startswith(VGG19_FILE.stem.removeprefix("vgg19-")):
        logger.warning("%s: not torchvision's file (its SHA-256 is another); the contrast loss will differ", path)
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def vgg19_layers() -> nn.Sequential:
    """The first twelve layers of VGG19.features, named as there: two, two and one convolutions, pooled between."""
    from torchvision.models.vgg import cfgs, make_layers  # here, because it takes seconds

    return make_layers(cfgs["E"][:7], batch_norm=False)


def _download() -> dict[str, torch.Tensor]:
    try:
        state = torch.hub.load_state_dict_from_url(VGG19_URL, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no space, a broken proxy
        raise FileNotFoundError(
            f"the contrast loss needs VGG19's weights: {VGG19_FILE} is not there, and {VGG19_URL} cannot be "
            f"downloaded ({error}). Either put the file there by hand, or train without this term: "
            "loss.contrast_weight=0"
        ) from error
    return {name: state[f"features.{name}"] for name in vgg19_layers().state_dict()}
