"""How much memory a device has left, how much a network takes, and whether an error says that it was too little."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

from .distributed import DeviceError

try:
    import resource
except ImportError:  # Windows has none; there the CPU's peak memory and its limits are unknown
    resource = None  # type: ignore[assignment]

PROBE = 128  # side in pixels of the image whose memory is measured
GIB = 2**30
OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # Linux control groups, version 2
KEPT, LARGEST_KEPT = 2**31 - 1, 2**25  # bytes in all, and of one allocation: the most that glibc takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class OutOfMemory(DeviceError):
    """The device has too little memory; the message says for what, and what needs less."""


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, keep freed memory for the next allocations, where the C library is glibc.

    By default glibc returns it to the system after every few layers; getting it back by page faults took 10 to 20 % of
    the time of a training step or of a small image.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if device.type == "cpu" and mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU (whose allocator raises a plain RuntimeError)."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory so far in bytes: PyTorch's allocations on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return high_water if os.uname().sysname == "Darwin" else high_water * 1024


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [free for free in (_available(), _left_in_cgroup(), _left_in_address_space()) if free is not None]
    return max(0, min(known)) if known else None


def bytes_per_pixel(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> float | None:
    """Measure the network's peak memory on one image of 128 x 128 pixels, in bytes per pixel of that image.

    Feature maps grow with the number of pixels, so this holds for large images as well. None where
    `peak_allocation` returns None.
    """
    image = torch.zeros(1, 3, PROBE, PROBE, device=device)
    with torch.inference_mode():
        peak = peak_allocation(lambda: network(image), device)
    return None if peak is None else peak / PROBE**2


def peak_allocation(work: Callable[[], object], device: torch.device) -> int | None:
    """Call ``work`` and return how many bytes of the device's memory it held at once.

    None where PyTorch's profiler sees no allocations.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs every run to the terminal
    # torch.profiler.profile records the same, but imports the compiler first, which takes seconds.
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profile:
        work()
    events = profile.kineto_results.events()
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in allocations:
        held += size
        peak = max(peak, held)
    return peak or None


def _available() -> int | None:
    """Linux's estimate of what can be allocated without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_cgroup() -> int | None:
    """What the limits of a container or batch job leave, the tightest of the group's own and those above it.

    Their file cache, which the kernel can drop, counts as free.
    """
    try:
        group = OWN_GROUP.read_text(encoding="utf-8").split("::")[-1].strip()
    except OSError:
        return None
    folder = GROUPS / group.lstrip("/")
    known = [_left_in(path) for path in (folder, *folder.parents) if path.is_relative_to(GROUPS)]
    return min((left for left in known if left is not None), default=None)


def _left_in(folder: Path) -> int | None:
    """Bytes that one control group's limit leaves; None without a limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        used = int((folder / "memory.current").read_text(encoding="ascii")) - int(statistics["file"])
    except (OSError, KeyError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used


def _left_in_address_space() -> int | None:
    """What ``ulimit -v`` leaves."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return None
    return None if limit == resource.RLIM_INFINITY else limit - used
