"""LPIPS (Zhang et al., CVPR 2018): the package lpips 0.1.4 with its v0.1 heads, over torchvision's ImageNet trunks.

The whole RGB image in [-1, 1]. The paper reports AlexNet's.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path

import torch

from .downloads import ALEXNET, VGG16, DownloadError, fetch, sha256
from .perceptual import PerceptualDistance

TRUNKS = {"alex": ALEXNET, "vgg": VGG16}


class LPIPS(PerceptualDistance):
    """LPIPS by AlexNet ("alex") or VGG16 ("vgg").

    Attributes:
        name: lpips_alex or lpips_vgg.
        facts: what decides the scores: the trunk's and the heads' checksums, versions, the kind of device.

    Raises:
        DownloadError: the package is not installed or the trunk's weights are unavailable.
        ValueError: an unknown net.
    """

    def __init__(self, net: str = "alex", device: str | torch.device = "cpu"):
        if net not in TRUNKS:
            raise ValueError(f"LPIPS has no net {net!r}; choose one of {', '.join(TRUNKS)}")
        try:
            import lpips  # slow to import, and not among the dependencies of a plain installation
        except ImportError as error:
            raise DownloadError(f"lpips_{net} needs the package lpips ({error}): pip install -e .[metrics]") from error
        trunk = fetch(TRUNKS[net])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it builds its trunk with arguments that torchvision deprecates
            network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        network.net.load_state_dict(_trunk_state(trunk, network.net.state_dict()))
        heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        backbone = {
            "file": TRUNKS[net].file,
            "sha256": TRUNKS[net].sha256,
            "heads_sha256": sha256(heads),
            "package": f"lpips {importlib.metadata.version('lpips')}",
        }
        super().__init__(f"lpips_{net}", network.to(device).eval(), backbone, device)


def _trunk_state(path: Path, names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's weights under the package's names: its slices keep the layers' numbers, slice2.3 is features.3."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: state[f"features.{name.split('.', 1)[1]}"] for name in names}
