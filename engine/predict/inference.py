"""Restore images of any size with a trained network: full, streamed, or by tiles."""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import torch

from datasets.files import checksum
from models.fused import fused
from models.images import MULTIPLE, reflect_pad
from models.streaming import stream, streams_exactly

from .. import distributed
from ..memory import GIB, PROBE, OutOfMemory, bytes_per_pixel, free_memory, is_out_of_memory, keep_freed_memory
from ..provenance import network_code
from .local_pooling import use_local_pooling
from .peers import Peer, PeerWeightsError
from .self_ensemble import restore_ensemble
from .tiling import restore_tiled
from .weights import load_any_network

logger = logging.getLogger(__name__)

PROBE_BAND = 4  # rows: a band's share of the 128 measured, halo included, is that of 32 rows in a photograph
MARGIN = 0.8  # share of the free memory that a recommended tile may take: allocators round up and leave gaps


class NotFinite(ArithmeticError):
    """The network's result holds NaN or infinity, so there is no image to write; the message names the image."""


class Restorer:
    """A network with its weights, ready to restore images of any size.

    Images are restored in full. Where a full image does not fit the memory and the network streams exactly, this and
    all later images are streamed: the same result to rounding, see `streaming`.

    Args:
        weights: the network's file, see `weights.load_any_network`.
        job_name: the job whose recipe says what the weights do not.
        device: where to run.
        precision: fp32 | bf16 (autocast).
        tile: side in pixels of the tiles to restore by, see `tiling`; None for full images.
        overlap: of tiles, in pixels.
        streamed: whether to stream full images from the start; None: on a CPU.
        compiled: whether to run the network through torch.compile, once for each of the first eight sizes of image;
            PyTorch compiles no more (its recompile_limit), and runs others as they are.
        local_pooling: side in pixels of the windows to average over, see `local_pooling`; None for the full image.
        self_ensemble: whether to average over flips and rotations, see `self_ensemble`.

    Raises:
        WeightsError, PeerWeightsError: the weights cannot be used, or not in this way: networks other than XYScanNet
            have neither streaming nor local pooling.
    """

    def __init__(
        self,
        weights: Path,
        job_name: str,
        device: torch.device,
        precision: str = "fp32",
        tile: int | None = None,
        overlap: int = 32,
        streamed: bool | None = None,
        compiled: bool = False,
        local_pooling: int | None = None,
        self_ensemble: bool = False,
    ):
        keep_freed_memory(device)
        self.network = load_any_network(weights, job_name, device).to(device)
        peer = isinstance(self.network, Peer)
        if peer and (streamed or local_pooling):
            flag = "--stream" if streamed else "--local_pooling"
            raise PeerWeightsError(f"{weights}: {flag} is for XYScanNet alone, and this is {self.network.architecture}")
        self.weights_sha256 = checksum(weights)
        self.device, self.precision, self.tile, self.overlap = device, precision, tile, overlap
        self.local_pooling, self.self_ensemble = local_pooling, self_ensemble
        if local_pooling:
            use_local_pooling(self.network, local_pooling)
        self.compiled = compiled
        if streamed is None:
            streamed = device.type == "cpu" and not compiled and not peer
        self.streamed = streamed and not tile
        made = None if peer or compiled or self.streamed else fused(self.network, precision)
        self.fused = made is not None
        self._full = made or self.network  # restores what is not streamed
        if compiled:
            self._full = torch.compile(self.network, mode="reduce-overhead", dynamic=False)
        if self.streamed and not streams_exactly(self.network):
            logger.warning(
                "%s: streaming does not reproduce this network's output, so images are restored without streaming",
                weights,
            )
            self.streamed = False
        self._bytes_per_pixel: dict[bool, float | None] = {}  # streamed or not: measured when first needed

    @classmethod
    def from_flags(cls, weights: Path, arguments: argparse.Namespace) -> Restorer:
        """Make a Restorer as `options.add_flags`' flags and --job_name say."""
        return cls(
            weights,
            arguments.job_name,
            distributed.device(arguments.device),
            precision=arguments.precision,
            tile=arguments.tile,
            overlap=arguments.overlap,
            streamed=arguments.stream or None,
            compiled=arguments.compile,
            local_pooling=arguments.local_pooling,
            self_ensemble=arguments.self_ensemble,
        )

    @property
    def credit(self) -> dict[str, str]:
        """Architecture and licence of another network than XYScanNet."""
        network = self.network
        return {"architecture": network.architecture, "licence": network.licence} if isinstance(network, Peer) else {}

    @property
    def maker(self) -> dict[str, object]:
        """What decides the values of a result. Streaming, compiling and the device change them by rounding alone."""
        return {
            "weights_sha256": self.weights_sha256,
            "network_code": None if self.credit else network_code(),
            "kl_gate": getattr(self.network, "kl_gate", None),  # None for other networks
            "precision": self.precision,
            "tile": self.tile,
            "overlap": self.overlap if self.tile else None,
            "local_pooling": self.local_pooling,
            "self_ensemble": self.self_ensemble or None,  # as in records older than the flag
            **self.credit,
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
    def restore(self, images: torch.Tensor, *names: str) -> tuple[torch.Tensor, float]:
        """Restore a batch of images.

        Args:
            images: (B, 3, H, W) in [-0.5, 0.5], of any size.
            names: of the images, for messages.

        Returns:
            The restored images on this device, same shape and range; the network's seconds.

        Raises:
            OutOfMemory: names the image, what it needs and what needs less.
            NotFinite: the result holds NaN or infinity.
        """
        names = names or ("image",)
        padded = reflect_pad(images.to(self.device))
        try:
            self._expect_to_fit(padded)
            restored, seconds = self._timed(padded)
            restored = restored[..., : images.shape[-2], : images.shape[-1]].float()
            self._check_finite(restored, names)
            return restored.clamp(-0.5, 0.5), seconds
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler: with the error, the failed run's activations are gone, and the memory is free again.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.streamed or self.tile or self.credit or not streams_exactly(self.network):
            raise OutOfMemory(self._advice(padded, names[0]))
        logger.warning(
            "%s: out of memory on %s; from here on images are streamed: the same result to rounding in less memory",
            names[0],
            self.device,
        )
        self.streamed = True
        return self.restore(images, *names)

    def _timed(self, padded: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The result and the seconds, the device synchronised before and after."""
        self._synchronise()
        started = time.perf_counter()
        restored = restore_ensemble(self._run, padded) if self.self_ensemble else self._run(padded)
        self._synchronise()
        return restored, time.perf_counter() - started

    def _run(self, padded: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.tile:
                return restore_tiled(lambda part: self._full(part).float(), padded, self.tile, self.overlap)
            return (stream(self.network, padded) if self.streamed else self._full(padded)).float()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check_finite(self, restored: torch.Tensor, names: tuple[str, ...]) -> None:
        low, high = restored.flatten(1).aminmax(dim=1)  # NaN carries through; isfinite would take an image's memory
        wrong = (~(low + high).isfinite()).nonzero().flatten().tolist()
        if wrong:
            name = names[min(wrong[0], len(names) - 1)]
            raise NotFinite(
                f"{name}: the network's result is not finite ({self.precision} on {self.device}), so "
                "nothing is written; its weights may be damaged"
                + ("; or try --precision fp32" if self.precision != "fp32" else "")
            )

    def _expect_to_fit(self, padded: torch.Tensor) -> None:
        """Raise MemoryError on a CPU for images that need more memory than is free.

        Linux grants an allocation beyond its memory and kills the process when it is used.
        """
        if self.device.type != "cpu" or self._pixels(padded) <= PROBE**2:
            return
        needed, free = self._needed(padded), free_memory(self.device)
        if needed is not None and free is not None and needed > free:
            raise MemoryError

    def _pixels(self, padded: torch.Tensor) -> int:
        """How many pixels the network sees at once."""
        batch, _, height, width = padded.shape
        side = self.tile or max(height, width)
        return batch * min(height, side) * min(width, side)

    def _needed(self, padded: torch.Tensor) -> float | None:
        """Bytes for these images, restored as they now are; None where that cannot be measured."""
        per_pixel = self._measure(self.streamed)
        return None if per_pixel is None else per_pixel * self._pixels(padded)

    def _measure(self, streamed: bool) -> float | None:
        """Bytes a pixel, measured once on a small image."""
        plain = self.network if self.compiled else self._full  # a size of its own would be compiled
        if streamed not in self._bytes_per_pixel:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                self._bytes_per_pixel[streamed] = bytes_per_pixel(
                    (lambda image: stream(self.network, image, PROBE_BAND)) if streamed else plain, self.device
                )
        return self._bytes_per_pixel[streamed]

    def _advice(self, padded: torch.Tensor, name: str) -> str:
        """One line: what was too large, by how much, and which flags need less."""
        batch, _, height, width = padded.shape
        side = math.sqrt(self._pixels(padded) / batch / 2)  # this failed, so that half of it is tried at most
        try:
            needed, free, per_pixel = self._needed(padded), free_memory(self.device), self._measure(streamed=False)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{name}: out of memory on {self.device}, even for {PROBE} x {PROBE} pixels; use another device"
        amounts = ""
        if free is not None and needed is not None and per_pixel is not None:
            side = min(side, math.sqrt(MARGIN * free / per_pixel / batch))
            amounts = f": {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free"
        tile = int(side) // MULTIPLE * MULTIPLE
        flags = [f"--tile {tile}"] if tile > self.overlap else []
        flags += ["--batch_size 1"] if batch > 1 else []
        at_once = f"a tile of {self.tile} x {self.tile}" if self.tile else f"{width} x {height}"
        return (
            f"{name}: out of memory on {self.device} for {batch} x {at_once} pixels"
            f"{', streamed' if self.streamed else ''}{amounts}; use {' or '.join(flags or ['another device'])}"
        )
