"""How much memory a device has left, how much a network takes, and what to do when it is not enough."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .distributed import DeviceError

try:
    import resource
except ImportError:  # Windows has none; there the CPU's high-water mark and limits are unknown
    resource = None

PROBE = 128  # side in pixels of the image whose memory is measured
PROBE_BANDS = 4, 16  # rows: the shares of 128 that bands have of large images lie between
MARGIN = 0.8  # of the free memory is planned with: allocators round up and leave gaps
GIB = 2**30


class OutOfMemory(DeviceError):
    """The device's memory does not suffice, or would not; the message names what fits."""


class StreamingCost(NamedTuple):
    """What streaming takes: bytes for each pixel of the image, and for each pixel of a band."""

    per_pixel: float
    per_band_pixel: float

    def of(self, batch: int, height: int, width: int, band: int) -> float:
        """Bytes for images of this size; a band is of rows or of columns, whichever are longer."""
        longest = max(height, width)
        return batch * (self.per_pixel * height * width + self.per_band_pixel * min(band, longest) * longest)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU (whose allocator raises a plain RuntimeError)."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def peak_memory(device: torch.device) -> int | None:
    """The most memory used so far, in bytes: PyTorch's on a GPU, the process's resident high-water mark on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return high_water if os.uname().sysname == "Darwin" else high_water * 1024


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [free for free in (_available(), _left_in_cgroup(), _left_in_address_space()) if free is not None]
    return max(0, min(known)) if known else None


def bytes_per_pixel(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> float | None:
    """Peak memory of the network on one small image, for each of its pixels; None where it cannot be measured.

    Every feature map grows with the number of pixels, so this holds for large images as well.
    """
    image = torch.zeros(1, 3, PROBE, PROBE, device=device)
    with torch.inference_mode():
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            network(image)
            return (torch.cuda.max_memory_allocated(device) - before) / PROBE**2
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler otherwise greets every run on the terminal
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            network(image)
    events = profile.profiler.kineto_results.events()
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in allocations:
        held += size
        peak = max(peak, held)
    return peak / PROBE**2 if peak else None


def streaming_cost(stream: Callable[[torch.Tensor, int], torch.Tensor], device: torch.device) -> StreamingCost | None:
    """Measured on one small image in two bands' heights; None where it cannot be measured.

    What neighbouring bands share is counted for each pixel, so that it is rather too much than too little.
    """
    narrow, wide = (bytes_per_pixel(lambda image, band=band: stream(image, band), device) for band in PROBE_BANDS)
    if narrow is None or wide is None:
        return None
    per_band_pixel = max(wide - narrow, 0) * PROBE / (PROBE_BANDS[1] - PROBE_BANDS[0])
    return StreamingCost(narrow - per_band_pixel * PROBE_BANDS[0] / PROBE, per_band_pixel)


def largest_tile(per_pixel: float, free: float) -> int:
    """The side in pixels, a multiple of 8, of the largest square that fits into `free` bytes; 0 where none does."""
    return int(math.sqrt(MARGIN * free / per_pixel)) // 8 * 8


def _available() -> int | None:
    """What Linux says can be allocated without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_cgroup() -> int | None:
    """What a container or a batch system leaves; the file cache it counts gives way."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("::")[-1].strip()
        folder = Path("/sys/fs/cgroup") / group.lstrip("/")
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        used = int((folder / "memory.current").read_text(encoding="ascii")) - int(statistics["file"])
    except (OSError, KeyError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used


def _left_in_address_space() -> int | None:
    """What `ulimit -v` leaves."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit - used
