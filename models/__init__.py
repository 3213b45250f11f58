"""XYScanNet: the network, its weights, and what runs it. Installed as the package ``xyscannet``."""

from . import fusion, ss2d, vssm  # noqa: F401 (register their modules)
from .api import deblur, load
from .ops.selective_scan import selective_scan
from .weights import WeightsError, load_network, load_weights
from .xyscannet import XYScanNet, xyscannet, xyscannet_s, xyscannet_t, xyscannetp

__all__ = [
    "WeightsError",
    "XYScanNet",
    "deblur",
    "load",
    "load_network",
    "load_weights",
    "selective_scan",
    "xyscannet",
    "xyscannet_s",
    "xyscannet_t",
    "xyscannetp",
]
