"""ST-LPIPS, shift-tolerant LPIPS (Ghildyal & Liu, ECCV 2022), by its published AlexNet, in a network of our own.

Compared with LPIPS' AlexNet, the first convolution has stride 1 instead of 4, with a blur pool of stride 2 before its
ReLU; max pooling has stride 1 and a blur pool of stride 2 after it (Zhang, ICML 2019). The blur is a 3 x 3 binomial
filter with a reflection padding of 2. Strides and padding are those that reproduce scores of the published package.
The weights, heads included, lie in the wheel of stlpips-pytorch 0.0.2 (BSD 2-Clause), of which nothing else is used: it
is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .downloads import DownloadError, sha256
from .perceptual import PerceptualDistance

PACKAGE = "stlpips-pytorch"
FILE = Path("weights") / "vST0.0" / "alex_shift_tolerant.pth"
SHA256 = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"
# The tensors' names in the file, and the layers of the network below that they belong to.
CONVOLUTIONS = {
    "net.slice1.0": "conv1",
    "net.slice2.5": "conv2",
    "net.slice3.9": "conv3",
    "net.slice4.11": "conv4",
    "net.slice5.13": "conv5",
}


class STLPIPS(PerceptualDistance):
    """ST-LPIPS by its shift-tolerant AlexNet.

    Attributes:
        name: stlpips_alex.
        facts: what decides the scores: the weights' checksum, versions, the kind of device.

    Raises:
        DownloadError: the package with the weights is not installed, or holds others.
    """

    def __init__(self, device: str | torch.device = "cpu"):
        path = weights_file()
        network = ShiftTolerantAlexNet()
        network.load_state_dict(_rename(torch.load(path, map_location="cpu", weights_only=True)))
        backbone = {
            "file": path.name,
            "sha256": SHA256,
            "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)} (weights only)",
        }
        super().__init__("stlpips_alex", network.to(device).eval(), backbone, device)


class ShiftTolerantAlexNet(nn.Module):
    """The weighted squared distance of unit features after five convolutions, averaged over space and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 11, padding=2)
        self.conv2 = nn.Conv2d(64, 192, 5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, 3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, 3, padding=1)
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(1, width, 1, 1)) for width in (64, 192, 384, 256, 256))
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> the outputs of the five ReLUs, at 1/2, 1/4, 1/8, 1/8 and 1/8 of the size."""
        first = F.relu(blur_pool(self.conv1((images - self.shift) / self.scale)))
        second = F.relu(self.conv2(blur_pool(F.max_pool2d(first, 3, stride=1))))
        third = F.relu(self.conv3(blur_pool(F.max_pool2d(second, 3, stride=1))))
        fourth = F.relu(self.conv4(third))
        return [first, second, third, fourth, F.relu(self.conv5(fourth))]

    def forward(self, restored: torch.Tensor, sharp: torch.Tensor) -> torch.Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> (B,)."""
        distances = []
        for x, y, head in zip(self.features(restored), self.features(sharp), self.heads, strict=True):
            distances.append(F.conv2d((_unit(x) - _unit(y)).square(), head).mean(dim=(1, 2, 3)))
        return torch.stack(distances).sum(dim=0)


def blur_pool(images: torch.Tensor) -> torch.Tensor:
    """Every second pixel of the images blurred by 1-2-1 both ways, (B, C, H, W) -> (B, C, H // 2 + 1, W // 2 + 1)
    for even sizes: mirrored by two pixels on all sides."""
    taps = images.new_tensor([0.25, 0.5, 0.25])
    channels = images.shape[1]
    window = (taps[:, None] * taps).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), window, stride=2, groups=channels)


def weights_file() -> Path:
    """The published weights in the installed package, found without importing it. Raises DownloadError."""
    found = importlib.util.find_spec("stlpips_pytorch")
    if found is None or found.submodule_search_locations is None:
        raise DownloadError(f"stlpips_alex needs the weights in the package {PACKAGE} 0.0.2: pip install -e .[metrics]")
    path = Path(found.submodule_search_locations[0]) / FILE
    if not path.is_file() or sha256(path) != SHA256:
        raise DownloadError(
            f"stlpips_alex needs the weights of {PACKAGE} 0.0.2 (sha256 {SHA256}); {path} is not there "
            "or is another file: pip install --force-reinstall --no-deps stlpips-pytorch==0.0.2"
        )
    return path


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors under our names; its blur filters, binomial ones, are left out."""
    renamed = {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in CONVOLUTIONS.items()
        for kind in ("weight", "bias")
    }
    heads = {f"heads.{level}": state[f"lin{level}.model.1.weight"] for level in range(5)}
    return renamed | heads | {name: state[f"scaling_layer.{name}"] for name in ("shift", "scale")}
