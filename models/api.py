"""What `import xyscannet` is for: `load` a network and `deblur` an image."""

from __future__ import annotations

import functools
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from .images import images_to_tensor, reflect_pad, tensor_to_images
from .streaming import stream, streams_exactly
from .weights import WeightsError, load_network
from .xyscannet import XYScanNet

if TYPE_CHECKING:
    from PIL import Image

PRETRAINED = Path(__file__).parent / "pretrained"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS_SUFFIXES = (".pth", ".pt", ".ckpt")

AnyImage = TypeVar("AnyImage", np.ndarray, "Image.Image")
_streams: weakref.WeakKeyDictionary[XYScanNet, bool] = weakref.WeakKeyDictionary()


def load(source: str | Path = "xyscannet_t", device: str | torch.device | None = None, **options: object) -> XYScanNet:
    """Load a network with its weights.

    Args:
        source: "xyscannet_t", the small network that comes with the package; a weights file, released or trained here;
            a folder written by `hub.HubXYScanNet.save_pretrained` ("./xyscannet_t" for one of that name); or the id of
            a Hugging Face repository, "user/name" (the last two with the extra ``hub``).
        device: where to put it, such as "cuda:1"; None takes a GPU if there is one, else the CPU.
        options: arguments of `XYScanNet` that the weights file does not record: ``kl_gate``, ``scan_backend``, ….
    Returns:
        The network in evaluation mode.
    Raises:
        WeightsError: no such weights, or weights that do not fit. ImportError: without the extra ``hub``.
    """
    shipped = {file.stem: file for file in PRETRAINED.glob("*.pth")}
    path = shipped.get(source, Path(source)) if isinstance(source, str) else source
    if path.is_dir() or not path.exists() and HUB_ID.fullmatch(str(source)) and path.suffix not in WEIGHTS_SUFFIXES:
        from .hub import load_pretrained  # only here: it needs the extra

        network: XYScanNet = load_pretrained(source, **options)
    elif path.exists() or path.suffix in WEIGHTS_SUFFIXES:
        network = load_network(path, **options)
    else:
        names = ", ".join(sorted(shipped))
        raise WeightsError(
            path, f"no such file, and no name of shipped weights ({names}) or of a repository, user/name"
        )
    return network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def deblur(
    image: AnyImage, network: XYScanNet | str | Path = "xyscannet_t", device: str | torch.device | None = None
) -> AnyImage:
    """Deblur one image.

    On a CPU the image is streamed, see `streaming`, in a fraction of the memory; on a GPU only where it does not fit
    otherwise. The result is the same to rounding.

    Args:
        image: (H, W, 3) RGB, uint8 or uint16; or a PIL image of mode RGB, RGBA, L or LA, which is turned upright as its
            EXIF data says. Of any size.
        network: a network, which stays on its device, or what `load` takes; a loaded one is kept for later calls,
            until its file is written again.
        device: where to load a network to, see `load`.
    Returns:
        The restored image, of the same type, size, mode and depth; alpha and PIL's ``info`` are carried over.
    Raises:
        TypeError, ValueError: unsupported image type, mode or shape. WeightsError: as `load`. FloatingPointError: the
        network's result is not finite.
    """
    if not isinstance(network, XYScanNet):
        path = Path(network)
        written = path.stat().st_mtime_ns if path.exists() else None
        network = _load_once(str(network), None if device is None else str(device), written)
    if isinstance(image, np.ndarray):
        return _deblur_array(image, network)
    return _deblur_pil(image, network)


@torch.inference_mode()
def _deblur_array(image: np.ndarray, network: XYScanNet) -> np.ndarray:
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be (H, W, 3) RGB, uint8 or uint16, not {image.shape}, {image.dtype}")
    height, width = image.shape[:2]
    weight = next(network.parameters())
    restored = _run(network, reflect_pad(images_to_tensor([image])).to(weight))[..., :height, :width]
    if not restored.isfinite().all():
        raise FloatingPointError("the network's result is not finite; its weights may be damaged")
    return tensor_to_images(restored, image.dtype.type)[0]


def _deblur_pil(image: Image.Image, network: XYScanNet) -> Image.Image:
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise TypeError(f"image must be a NumPy array or a PIL image, not {type(image).__name__}")
    if image.mode in ("I", "I;16", "I;16B", "F"):  # converting these would clip them to 8 bits
        raise ValueError(f"image must be of mode RGB, RGBA, L or LA, not {image.mode}; give (H, W, 3) uint16 instead")
    if image.mode not in ("RGB", "RGBA", "L", "LA"):
        raise ValueError(f'image must be of mode RGB, RGBA, L or LA, not {image.mode}; use image.convert("RGB")')
    image = ImageOps.exif_transpose(image)
    restored = _deblur_array(np.asarray(image.convert("RGB")), network)
    if image.mode[0] == "L":
        restored = restored.mean(axis=2).round().astype(np.uint8)
    result = Image.fromarray(restored)
    if image.mode[-1] == "A":
        result.putalpha(image.getchannel("A"))
    result.info = dict(image.info)
    return result


def _run(network: XYScanNet, images: torch.Tensor) -> torch.Tensor:
    if images.device.type == "cpu" and _can_stream(network):
        return stream(network, images)
    try:
        return network(images)
    except torch.cuda.OutOfMemoryError as error:
        too_large = error.with_traceback(None)
    torch.cuda.empty_cache()  # only here, after the exception, is the memory of its frames free
    if not _can_stream(network):
        raise too_large
    return stream(network, images)


def _can_stream(network: XYScanNet) -> bool:
    if network not in _streams:
        _streams[network] = streams_exactly(network)
    return _streams[network]


@functools.lru_cache(maxsize=2)
def _load_once(source: str, device: str | None, written: int | None) -> XYScanNet:
    """`load`, cached until the weights file changes."""
    return load(source, device)
