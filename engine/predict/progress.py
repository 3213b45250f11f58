"""A progress bar with the time left that moves within an image: by parts when streaming, by tiles, by layers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn
from tqdm import tqdm

from models import streaming

from .inference import Restorer
from .tiling import tile_starts

PROBE = 64  # side in pixels of the image whose work is counted first
SMALL = 512**2  # pixels of an image that is restored before a bar is read
FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


class Work:
    """Counts what a network has done: parts of feature maps where it reports them, else its convolutions' outputs."""

    def __init__(self, network: nn.Module, reports: bool):
        self.done = 0
        self.bar: tqdm | None = None
        self._hooks = []
        if reports:
            streaming.listeners.append(self._count)
            return
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                self._hooks.append(module.register_forward_hook(lambda *given: self._count(given[2].numel())))

    def _count(self, work: int) -> None:
        self.done += work
        if self.bar is not None:  # its total is an estimate: halos are another share of another size
            self.bar.update(min(self.done, self.bar.total) - self.bar.n)

    def close(self) -> None:
        if self._count in streaming.listeners:
            streaming.listeners.remove(self._count)
        for hook in self._hooks:
            hook.remove()


@contextlib.contextmanager
def show_progress(restorer: Restorer, height: int, width: int, name: str) -> Iterator[None]:
    """A bar while an image of that size is restored, on a terminal alone; none for a small image.

    A compiled network has none either: hooks would have it compiled again.
    """
    if not sys.stderr.isatty() or height * width < SMALL or restorer.compiled:
        yield
        return
    work = Work(restorer.network, restorer.streamed or restorer.fused)
    try:
        side = min(PROBE, restorer.tile or PROBE)
        restorer.restore(torch.zeros(1, 3, side, side), name)
        total = round(work.done / side**2 * pixels_seen(restorer, height, width))
        work.done = 0
        with tqdm(total=total, desc=name, bar_format=FORM, leave=False) as work.bar:
            yield
    finally:
        work.close()


def pixels_seen(restorer: Restorer, height: int, width: int) -> int:
    """How many pixels the network sees of an image: where tiles overlap, some more than once."""
    tile = restorer.tile
    if not tile:
        return height * width
    rows, columns = (len(tile_starts(size, tile, restorer.overlap)) for size in (height, width))
    return rows * min(tile, height) * columns * min(tile, width)
