"""The network and nothing else."""

from . import fusion, ss2d, vssm  # noqa: F401 (they register their modules)
from .weights import WeightsError, load_network, load_weights
from .xyscannet import XYScanNet, xyscannet, xyscannet_s, xyscannet_t, xyscannetp

__all__ = [
    "WeightsError",
    "XYScanNet",
    "load_network",
    "load_weights",
    "xyscannet",
    "xyscannet_s",
    "xyscannet_t",
    "xyscannetp",
]
