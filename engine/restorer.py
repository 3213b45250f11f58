"""Restoring images of any size with a trained network: found, loaded, padded, whole or by tiles, timed."""
from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch

from models.weights import load_network

from . import distributed
from .config import CONFIGS, config_path, model_options, models_dir
from .memory import GIB, PROBE, OutOfMemory, bytes_per_pixel, free_memory, is_out_of_memory, largest_tile
from .tiling import check_tile, restore_tiled

MULTIPLE = 8


class MissingWeights(FileNotFoundError):
    """The weights that a command uses by default are not there."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say how images are restored, the same in all prediction scripts."""
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="weights to use instead of the job's own in results/JOB_NAME/models")
    parser.add_argument("--tile", type=int, metavar="N",
                        help="restore by tiles of N x N pixels, a multiple of 8, to save memory; default: whole images "
                             "(the two score differently)")
    parser.add_argument("--overlap", type=int, default=32, metavar="N",
                        help="pixels, a multiple of 8, over which tiles are blended (default %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="bf16: mixed precision by autocast (default %(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: a GPU where there is one")
    parser.add_argument("--overwrite", action="store_true", help="redo what is already there")


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Stops with the parser's usage and an error for flags that cannot be."""
    try:
        distributed.device(arguments.device)
    except (RuntimeError, ValueError) as error:
        parser.error(f"--device: {error}")
    if arguments.tile is not None:
        try:
            check_tile(arguments.tile, arguments.overlap)
        except ValueError as error:
            parser.error(f"--tile, --overlap: {error}")


def find_weights(weights: Path | None, job_name: str, which: str) -> Path:
    """The file asked for, or stage 2's best_ or final_ weights of the job; never another one.

    Raises MissingWeights that names the file, what lies in its folder instead, and how to get it; ConfigError for a
    job that is none.
    """
    path = weights or models_dir(job_name) / f"{which}_XYScanNet_stage2.pth"
    if path.is_file():
        return path
    others = ", ".join(sorted(found.name for found in path.parent.glob("*.pth")))
    there = f"{path.parent} holds {others or 'no weights'}"
    if weights:
        raise MissingWeights(f"no weights at {path}, the file given with --weights; {there}")
    if not path.parent.is_dir():
        config_path(job_name, stage=2)      # a job that is none is the likelier mistake
    training = "".join(f"    python train_XYScanNet_stage{stage}.py --job_name {job_name}\n" for stage in (1, 2)
                       if (CONFIGS / job_name / f"config_stage{stage}.yaml").is_file())
    raise MissingWeights(
        f"no weights at {path}; {there}. Put a released checkpoint there under that very name, or train it:\n"
        f"{training}or choose another file with --weights FILE")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Restorer:
    """A network with its weights, ready to restore images of any size.

    Args:
        weights: the network's file, see `models.weights.load_network`; its other options are the job's.
        tile: side of the tiles in pixels; None restores whole images.
    """

    def __init__(self, weights: Path, job_name: str, device: torch.device, precision: str = "fp32",
                 tile: int | None = None, overlap: int = 32):
        self.network = load_network(weights, **model_options(job_name, stage=2)).to(device)
        self.device, self.precision, self.tile, self.overlap = device, precision, tile, overlap
        self._per_pixel: float | None = None  # bytes, measured when first needed

    @property
    def kl_gate(self) -> str:
        return self.network.kl_gate

    @torch.inference_mode()
    def restore(self, images: torch.Tensor, name: str = "image") -> tuple[torch.Tensor, float]:
        """Restores a batch (B, 3, H, W) in [-0.5, 0.5], of any size: (the clamped result on this device, seconds).

        The time is the network's, the device synchronised before and after. `name` is for messages.
        Raises OutOfMemory that names the tile that fits.
        """
        images = images.to(self.device)
        height, width = images.shape[-2:]
        padded = pad_by_reflection(images)
        self._expect_to_fit(padded, name)
        self._synchronise()
        started = time.perf_counter()
        try:
            restored = self._run(padded)[..., :height, :width].float().clamp(-0.5, 0.5)
            self._synchronise()
            return restored, time.perf_counter() - started
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here, after the error and with it the network's activations are gone, is the memory free to be measured.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(self._advice(padded, name, "out of memory"))

    def _run(self, padded: torch.Tensor) -> torch.Tensor:
        if self.tile is None:
            return self._forward(padded)
        return restore_tiled(self._forward, padded, self.tile, self.overlap)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(images).float()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _expect_to_fit(self, padded: torch.Tensor, name: str) -> None:
        """On the CPU, looks first: Linux promises more memory than there is, then kills the process without a word."""
        if self.device.type != "cpu" or self._pixels(padded) <= PROBE**2:
            return
        free, needed = free_memory(self.device), self._needed(padded)
        if free is not None and needed is not None and needed > free:
            raise OutOfMemory(self._advice(padded, name, "not enough memory"))

    def _pixels(self, padded: torch.Tensor) -> int:
        """How many pixels the network sees at once."""
        batch, _, height, width = padded.shape
        side = self.tile or max(height, width)
        return batch * min(height, side) * min(width, side)

    def _needed(self, padded: torch.Tensor) -> float | None:
        if self._per_pixel is None:
            self._per_pixel = bytes_per_pixel(self._forward, self.device)
        return None if self._per_pixel is None else self._per_pixel * self._pixels(padded)

    def _advice(self, padded: torch.Tensor, name: str, what: str) -> str:
        batch, _, height, width = padded.shape
        try:
            needed, free = self._needed(padded), free_memory(self.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{name}: {what} on {self.device}, even for an image of {PROBE} x {PROBE} pixels; use another device"
        # What has just failed does not fit, whatever the estimate says.
        tile = int((self._pixels(padded) / batch / 2) ** 0.5) // MULTIPLE * MULTIPLE
        if needed is not None and free is not None:
            tile = min(tile, largest_tile(self._per_pixel * batch, free))
        at_once = f"{self.tile} x {self.tile} pixel tile" if self.tile else f"{width} x {height} pixels"
        amounts = f": {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free" if needed and free else ""
        advice = f"use --tile {tile}" if tile > MULTIPLE else "use a device with more memory"
        advice += ", or --batch_size 1" if batch > 1 else ""
        return f"{name}: {what} on {self.device} for {batch} x {at_once}{amounts}; {advice}"


def pad_by_reflection(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) with the lower and right sides reflected until both sides are multiples of 8.

    A side too short for that is reflected to and fro, as NumPy's `pad` does; a single pixel is repeated.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        index = torch.arange(size + -size % MULTIPLE, device=images.device) % max(2 * (size - 1), 1)
        images = images.index_select(dim, torch.minimum(index, 2 * (size - 1) - index) if size > 1 else index)
    return images


def from_levels(images: list[np.ndarray]) -> torch.Tensor:
    """8-bit or 16-bit images (H, W, 3) of one size and depth -> (B, 3, H, W) float32 in [-0.5, 0.5]."""
    batch = np.stack(images)
    peak = np.iinfo(batch.dtype).max
    return torch.from_numpy(batch.astype(np.float32)).permute(0, 3, 1, 2) / peak - 0.5


def to_levels(images: torch.Tensor, dtype: type = np.uint8) -> np.ndarray:
    """(B, 3, H, W) in [-0.5, 0.5] -> (B, H, W, 3) of the 8-bit or 16-bit type, rounded to the nearest level."""
    peak = np.iinfo(dtype).max
    levels = ((images.float().clamp(-0.5, 0.5) + 0.5) * peak).round()
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(dtype)
