"""Other authors' restoration networks by this repository's protocol: NAFNet, Restormer, … (extra ``peers``).

The package spandrel knows the architectures by their weights' content; those under restrictive licences are in
spandrel_extra_arches.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn

from ..memory import is_out_of_memory

EXTRA = "spandrel_extra_arches"


class PeerWeightsError(RuntimeError):
    """Weights that are no known network's, or of one that does not restore images at their own size."""


class Peer(nn.Module):
    """A network with its weights. (B, 3, H, W) in [-0.5, 0.5] -> the same; clamped to it.

    Attributes:
        architecture: its name. licence: what is known of its licence, in words.
    """

    def __init__(self, descriptor):
        super().__init__()
        self.descriptor = descriptor
        self.network = descriptor.model  # registered, so that .to(device) and .eval() reach it
        self.architecture = descriptor.architecture.name
        extra = type(descriptor.architecture).__module__.startswith(EXTRA)
        self.licence = (
            f"restrictive, often for non-commercial use alone (carried by {EXTRA})"
            if extra
            else "permissive (carried by spandrel)"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.descriptor((images + 0.5).clamp(0, 1)) - 0.5


def has_spandrel() -> bool:
    return importlib.util.find_spec("spandrel") is not None


def load_peer(path: Path) -> Peer:
    """The network that the weights in ``path`` are of, on the CPU.

    Raises:
        PeerWeightsError: no architecture fits, or it changes the size or the number of channels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        import spandrel
    with contextlib.suppress(ImportError):  # not installed
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        descriptor = spandrel.ModelLoader(device="cpu").load_from_file(path)
    except spandrel.UnsupportedModelError as error:
        raise PeerWeightsError(
            f"{path}: not the weights of a supported network (XYScanNet, or one that spandrel knows)"
        ) from error
    except Exception as error:  # SafetensorError, and whatever an architecture's code raises
        if isinstance(error, OSError) or is_out_of_memory(error):
            raise
        raise PeerWeightsError(f"{path}: weights that do not fit the network they seem to be of: {error}") from error
    channels = descriptor.input_channels, descriptor.output_channels
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or descriptor.scale != 1 or channels != (3, 3):
        raise PeerWeightsError(
            f"{path}: {descriptor.architecture.name} takes {channels[0]} channels to {channels[1]}, scaled by "
            f"{descriptor.scale}; only networks that restore RGB images at their own size can be used"
        )
    return Peer(descriptor).eval()
