"""Registry of exchangeable modules: fusion modules between the levels, state space modules in the decoder.

A decorator registers a class under a name:

    @fusion("mine")
    class Mine(nn.Module):
        def __init__(self, dim, other_dims, options): ...
        def forward(self, current, other1, other2): ...

``model.fusion=mine`` then trains, validates and predicts with it; its weights files record it, and the tables list it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

FUSIONS: dict[str, type[nn.Module]] = {}
STATE_SPACES: dict[str, type[nn.Module]] = {}


@dataclass(frozen=True)
class Options:
    """Options of the network that its modules may use; see ``XYScanNet``."""

    kl_gate: str = "image"
    scan: str = "unidirectional"
    scan_backend: str = "auto"


def fusion(name: str) -> Callable[[type], type]:
    """Register a fusion module, ``Module(dim, other_dims, options)``, as a value of ``model.fusion``.

    forward(current, other1, other2) takes the current level's features (B, dim, H, W) and two other levels' of
    ``other_dims`` channels and other sizes, and returns (B, dim, H, W).
    """
    return _register(FUSIONS, name)


def state_space(name: str) -> Callable[[type], type]:
    """Register a state space module, ``Module(dim, options)``, as a value of ``model.vssm``.

    forward maps (B, dim, H, W) to the same shape; the module takes both places in a decoder block.
    """
    return _register(STATE_SPACES, name)


def _register(names: dict[str, type], name: str) -> Callable[[type], type]:
    def register(cls: type) -> type:
        if name in names:
            raise ValueError(f"{name!r} is already the name of {names[name].__qualname__}")
        names[name] = cls
        return cls

    return register
