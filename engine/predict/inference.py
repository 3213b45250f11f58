"""Restoring images of any size with a trained network: found, loaded, padded, whole, streamed or by tiles, timed."""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.ops.selective_scan import why_not
from models.weights import load_network

from .. import distributed
from ..config import CONFIGS, config_path, model_options, models_dir, shipped_weights
from ..memory import (
    GIB,
    MARGIN,
    PROBE,
    OutOfMemory,
    StreamingCost,
    bytes_per_pixel,
    free_memory,
    is_out_of_memory,
    largest_tile,
    streaming_cost,
)
from .local_pooling import use_local_pooling
from .options import AUTO
from .self_ensemble import restore_ensemble
from .streaming import BAND, stream, streams_exactly
from .tiling import restore_tiled

logger = logging.getLogger(__name__)

MULTIPLE = 8


class MissingWeights(FileNotFoundError):
    """The weights that a command uses by default are not there."""


class NotFinite(ArithmeticError):
    """The network's result is not finite, so there is no image to write; the message names it."""


def find_weights(weights: Path | None, job_name: str, which: str) -> Path:
    """The file asked for; else stage 2's best_ or final_ weights of the job; else those that come with its recipe.

    Raises MissingWeights that names the file, what lies in its folder instead, and how to get it; ConfigError for a
    job that is none.
    """
    path = weights or models_dir(job_name) / f"{which}_XYScanNet_stage2.pth"
    if path.is_file():
        return path
    if not weights and shipped_weights(job_name).is_file():
        return shipped_weights(job_name)
    others = ", ".join(sorted(found.name for found in path.parent.glob("*.pth")))
    there = f"{path.parent} holds {others or 'no weights'}"
    if weights:
        raise MissingWeights(f"no weights at {path}, the file given with --weights; {there}")
    if not path.parent.is_dir():
        config_path(job_name, stage=2)  # a job that is none is the likelier mistake
    training = "".join(
        f"    python train_XYScanNet_stage{stage}.py --job_name {job_name}\n"
        for stage in (1, 2)
        if (CONFIGS / job_name / f"config_stage{stage}.yaml").is_file()
    )
    raise MissingWeights(
        f"no weights at {path}; {there}. Put a released checkpoint there under that very name, or train it:\n"
        f"{training}or choose another file with --weights FILE"
    )


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Restorer:
    """A network with its weights, ready to restore images of any size.

    Args:
        weights: the network's file, see `models.weights.load_network`; its other options are the job's.
        tile: side of the tiles in pixels; None restores full images; "auto" chooses by memory, see `choose_mode`.
        streamed: restores full images band by band, see `streaming`; None: on a CPU, where that is quicker.
        compiled: restores with torch.compile's network, made anew for each size of image.
        local_pooling: side in pixels of the windows to average over, see `local_pooling`; nothing is streamed.
        self_ensemble: restores all flips and rotations of an image, see `engine.predict.self_ensemble`.
    """

    def __init__(
        self,
        weights: Path,
        job_name: str,
        device: torch.device,
        precision: str = "fp32",
        tile: int | str | None = None,
        overlap: int = 32,
        streamed: bool | None = None,
        compiled: bool = False,
        local_pooling: int | None = None,
        self_ensemble: bool = False,
    ):
        self.network = load_network(weights, **_options(weights, job_name, device)).to(device)
        self.weights_sha256 = checksum(weights)
        if local_pooling:
            use_local_pooling(self.network, local_pooling)
        self.local_pooling, self.self_ensemble = local_pooling, self_ensemble
        self._compiled = torch.compile(self.network, mode="reduce-overhead", dynamic=False) if compiled else None
        self.device, self.precision, self.overlap = device, precision, overlap
        self.auto, self.tile = tile == AUTO, None if tile == AUTO else tile
        # Whether full images are streamed, which is quicker on a CPU.
        self._bands = device.type == "cpu" and not compiled and not local_pooling if streamed is None else streamed
        if self._bands and not streams_exactly(self.network):
            logger.warning(
                "%s: this network has been changed in a way that streaming does not know of; images are "
                "restored by the network itself, without streaming",
                weights,
            )
            self._bands = False
        self.streamed = self._bands and not self.tile
        self._per_pixel: float | None = None  # bytes, measured when first needed
        self._streaming: StreamingCost | None = None

    @classmethod
    def from_flags(cls, weights: Path, arguments: argparse.Namespace) -> Restorer:
        """As the flags of `flags.add_flags` and --job_name say."""
        return cls(
            weights,
            arguments.job_name,
            distributed.device(arguments.device),
            arguments.precision,
            arguments.tile,
            arguments.overlap,
            arguments.stream or None,
            arguments.compile,
            arguments.local_pooling,
            arguments.self_ensemble,
        )

    @property
    def kl_gate(self) -> str:
        return self.network.kl_gate

    @property
    def maker(self) -> dict[str, object]:
        """What decides the values of a result. Streaming, compiling and the device change them by rounding alone."""
        return {
            "weights_sha256": self.weights_sha256,
            "kl_gate": self.kl_gate,
            "precision": self.precision,
            "tile": self.tile,
            "overlap": self.overlap if self.tile else None,
            "local_pooling": self.local_pooling,
            "self_ensemble": self.self_ensemble or None,
        }

    @property
    def mode(self) -> str:
        """How images are restored, in words."""
        images = f"tiles of {self.tile} x {self.tile} pixels" if self.tile else "full images"
        return (
            f"{images}{', streamed' if self.streamed else ''}"
            f"{f', averages over {self.local_pooling} pixels' if self.local_pooling else ''}"
            f"{', mean over eight flips and rotations' if self.self_ensemble else ''}"
        )

    @torch.inference_mode()
    def choose_mode(self, batch: int, height: int, width: int) -> str:
        """With tile "auto": full images if those of this size fit the free memory; else streamed ones (on a CPU at
        once), if they do; else the largest tile that does. Returns what was chosen, and why, in a line.

        Raises OutOfMemory where not even a tile larger than the overlap fits.
        """
        height, width = (side + -side % MULTIPLE for side in (height, width))
        self.tile, self.streamed = None, self._bands
        try:
            whole, free = self._needed(batch, height, width), free_memory(self.device)  # measuring takes some itself
            if free is None or whole is None:
                return f"{self.mode}: how much memory is free, or needed, cannot be told here"
            if whole <= MARGIN * free:
                return f"{self.mode}: {whole / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free"
            self.streamed = True
            streamed, free = self._needed(batch, height, width), free_memory(self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._too_small()) from error
        short = f"not streamed, {whole / GIB:.1f} GiB needed"
        if streamed <= MARGIN * free:
            return f"{self.mode}: {streamed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free ({short})"
        self.tile, self.streamed = largest_tile(self._per_pixel * batch, free), False
        if self.tile <= self.overlap:
            raise OutOfMemory(
                f"{self.device} has {free / GIB:.1f} GiB free: not enough for tiles that overlap by "
                f"{self.overlap} pixels; use another device"
            )
        return f"{self.mode}: {free / GIB:.1f} GiB free (full images need {streamed / GIB:.1f} GiB, streamed)"

    @torch.inference_mode()
    def restore(self, images: torch.Tensor, *names: str) -> tuple[torch.Tensor, float]:
        """Restores a batch (B, 3, H, W) in [-0.5, 0.5], of any size: (the clamped result on this device, seconds).

        The time is the network's, the device synchronised before and after. `names` of the images are for messages.
        Raises OutOfMemory that names what takes less memory; NotFinite for a result with a NaN or an infinity.
        """
        name = names[0] if names else "image"
        images = images.to(self.device)
        height, width = images.shape[-2:]
        padded = pad_by_reflection(images)
        self._expect_to_fit(padded, name)
        self._synchronise()
        started = time.perf_counter()
        try:
            restored = restore_ensemble(self._run, padded) if self.self_ensemble else self._run(padded)
            restored = restored[..., :height, :width].float()
            self._synchronise()
            seconds = time.perf_counter() - started
            self._check_finite(restored, names or (name,))
            return restored.clamp(-0.5, 0.5), seconds
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here, after the error and with it the network's activations are gone, is the memory free to be measured.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(self._advice(padded, name, "out of memory"))

    def _check_finite(self, restored: torch.Tensor, names: tuple[str, ...]) -> None:
        # Extremes carry a NaN along, and take no memory of an image's size.
        low, high = restored.flatten(1).aminmax(dim=1)
        wrong = (~(low + high).isfinite()).nonzero().flatten().tolist()
        if wrong:
            name = names[min(wrong[0], len(names) - 1)]
            raise NotFinite(
                f"{name}: the network's result is not finite ({self.precision} on {self.device}), so "
                "nothing is written; its weights may be damaged"
                + (", or --precision fp32 may do" if self.precision != "fp32" else "")
            )

    def _run(self, padded: torch.Tensor) -> torch.Tensor:
        forward = functools.partial(self._forward, network=self._compiled)
        if self.tile:
            return restore_tiled(forward, padded, self.tile, self.overlap)
        return self._stream(padded) if self.streamed else forward(padded)

    def _forward(self, images: torch.Tensor, network: Callable | None = None) -> torch.Tensor:
        with self._autocast():
            return (network or self.network)(images).float()

    def _stream(self, images: torch.Tensor, band: int = BAND) -> torch.Tensor:
        with self._autocast():
            return stream(self.network, images, band).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _expect_to_fit(self, padded: torch.Tensor, name: str) -> None:
        """On the CPU, looks first: Linux promises more memory than there is, then kills the process without a word."""
        batch, _, height, width = padded.shape
        if self.device.type != "cpu" or self._pixels(batch, height, width) <= PROBE**2:
            return
        free, needed = free_memory(self.device), self._needed(batch, height, width)
        if free is not None and needed is not None and needed > free:
            raise OutOfMemory(self._advice(padded, name, "not enough memory"))

    def _pixels(self, batch: int, height: int, width: int) -> int:
        """How many pixels the network sees at once."""
        side = self.tile or max(height, width)
        return batch * min(height, side) * min(width, side)

    def _needed(self, batch: int, height: int, width: int) -> float | None:
        """Bytes for images of this size, restored as they now are; measured on small ones."""
        if self._per_pixel is None:
            self._per_pixel = bytes_per_pixel(self._forward, self.device)
        if self.streamed and self._streaming is None:
            self._streaming = streaming_cost(self._stream, self.device)
        if self.streamed:
            return None if self._streaming is None else self._streaming.of(batch, height, width, BAND)
        return None if self._per_pixel is None else self._per_pixel * self._pixels(batch, height, width)

    def _advice(self, padded: torch.Tensor, name: str, what: str) -> str:
        batch, _, height, width = padded.shape
        try:
            needed, free = self._needed(batch, height, width), free_memory(self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{name}: {self._too_small()}"
        # What has just failed does not fit, whatever the estimate says.
        tile = int((self._pixels(batch, height, width) / batch / 2) ** 0.5) // MULTIPLE * MULTIPLE
        if needed is not None and free is not None:
            tile = min(tile, largest_tile(self._per_pixel * batch, free))
        at_once = f"{self.tile} x {self.tile} pixel tile" if self.tile else f"{width} x {height} pixels"
        amounts = f": {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free" if needed and free else ""
        ways = [] if self.tile or self.streamed or self.local_pooling else ["--stream (full images, the same result)"]
        ways += [f"--tile {tile}"] if tile > MULTIPLE else []
        if not ways:
            ways = ["a device with more memory"]
        elif not self.auto and not self.local_pooling:
            ways += ["--tile auto"]
        ways += ["--batch_size 1"] if batch > 1 else []
        streamed = ", streamed" if self.streamed else ""
        return f"{name}: {what} on {self.device} for {batch} x {at_once}{streamed}{amounts}; use {', or '.join(ways)}"

    def _too_small(self) -> str:
        return f"out of memory on {self.device}, even for an image of {PROBE} x {PROBE} pixels; use another device"


def _options(weights: Path, job_name: str, device: torch.device) -> dict:
    """What the weights do not tell of their network. A scan backend of the training machine's that cannot run here
    gives way to "auto": backends differ in speed, not in what they compute."""
    options = model_options(weights, job_name)
    reason = why_not(options.get("scan_backend"), device.type)
    if reason is None:
        return options
    logger.warning(
        "the job's scan backend %s cannot run on %s (%s): auto is used", options["scan_backend"], device, reason
    )
    return {**options, "scan_backend": "auto"}


def pad_by_reflection(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) with the lower and right sides reflected until both sides are multiples of 8.

    A side too short for that is reflected to and fro, as NumPy's `pad` does; a single pixel is repeated.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        index = torch.arange(size + -size % MULTIPLE, device=images.device) % max(2 * (size - 1), 1)
        images = images.index_select(dim, torch.minimum(index, 2 * (size - 1) - index) if size > 1 else index)
    return images


def images_to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """8-bit or 16-bit images (H, W, 3) of one size and depth -> (B, 3, H, W) float32 in [-0.5, 0.5]."""
    batch = np.stack(images)
    peak = np.iinfo(batch.dtype).max
    return torch.from_numpy(batch.astype(np.float32)).permute(0, 3, 1, 2) / peak - 0.5


def tensor_to_images(images: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(B, 3, H, W) in [-0.5, 0.5] -> (B, H, W, 3) of the 8-bit or 16-bit type, rounded to the nearest level."""
    peak = np.iinfo(dtype).max
    levels = ((images.float().clamp(-0.5, 0.5) + 0.5) * peak).round()
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(dtype)
