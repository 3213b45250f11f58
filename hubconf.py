"""XYScanNet through torch.hub: ``torch.hub.load(REPOSITORY, "xyscannet_t")``, also with ``source="local"``."""

import importlib.util
import sys
from pathlib import Path

dependencies = ["torch", "einops", "numpy"]

# Imported as `xyscannet`, not as `models`: that name may be taken by a package of the program that calls torch.hub.
if "xyscannet" not in sys.modules:
    _folder = Path(__file__).parent / "models"
    _spec = importlib.util.spec_from_file_location(
        "xyscannet", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules["xyscannet"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["xyscannet"])

from xyscannet import load, xyscannet, xyscannet_s, xyscannetp  # noqa: E402, F401
from xyscannet import xyscannet_t as _xyscannet_t  # noqa: E402


def xyscannet_t(pretrained=True, **options):
    """XYScanNet-T in evaluation mode, by default with the weights that come with the repository."""
    return load("xyscannet_t", device="cpu", **options) if pretrained else _xyscannet_t(**options).eval()
