"""What the benchmarks share: a process for each measurement, its median time and peak memory, rates, tables.

Memory is what rose above what was held before the first run: on a GPU what PyTorch allocated, on a CPU the process's
resident memory, both at their highest while the runs were timed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from engine.memory import free_memory, is_out_of_memory, peak_memory
from models.ops.selective_scan import BACKENDS, resolve_backend

try:
    import resource
except ImportError:  # Windows has none; there memory is not limited
    resource = None

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OUT_OF_MEMORY = "out of memory"
LEFT_OUT = "-: nothing to compare with, or left out for the time or memory it takes"


class Measurement(NamedTuple):
    seconds: float  # median of the runs
    memory: int  # bytes


def measure(work: Callable[[], object], device: torch.device, repeats: int) -> Measurement:
    """Median time of ``repeats`` runs after one to warm up (which compiles what is compiled), and peak memory."""
    before, _ = _memory(device)
    work()
    _reset_peak(device)
    seconds = []
    for _ in range(repeats):
        _synchronise(device)
        started = time.perf_counter()
        work()
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    return Measurement(statistics.median(seconds), _memory(device)[1] - before)


def once(work: Callable[[], object], device: torch.device) -> Measurement:
    """Time and peak memory of a single run, for work that takes minutes."""
    before, _ = _memory(device)
    _reset_peak(device)
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return Measurement(time.perf_counter() - started, _memory(device)[1] - before)


def isolated(function: Callable, *arguments, device: torch.device, limit: float):
    """What ``function`` returns in a process of its own; None, and a line that says so, where it takes too long or
    too much memory.

    Args:
        function: of a module's top level; arguments and result can be pickled.
        limit: seconds after which the process is ended.
    """
    receiver, sender = _context().Pipe(duplex=False)
    process = _context().Process(target=_answer, args=(sender, device, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv() if receiver.poll(limit) else (None, f"took longer than {limit:g} s")
    except EOFError:  # ended by the system, as it does when memory is short
        result, error = None, OUT_OF_MEMORY
    finally:
        process.kill()
        process.join()
    if error and "Traceback" in error:
        raise RuntimeError(f"{function.__name__}{arguments} failed in its process:\n{error}")
    if error:
        tqdm.write(f"left out, {error}: {' '.join(map(str, arguments))}", file=sys.stderr)
    return result


def _context() -> multiprocessing.context.BaseContext:
    """Processes forked from one that has imported PyTorch and done nothing: fresh, and started in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    return context


def _answer(sender: Connection, device: torch.device, function: Callable, arguments: tuple) -> None:
    """Send (result, None) or (None, the error in words)."""
    try:
        if device.type == "cpu":
            _limit_memory(device)
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, OUT_OF_MEMORY if is_out_of_memory(error) else traceback.format_exc()))


def _limit_memory(device: torch.device) -> None:
    """Let allocations beyond the free memory fail, before the system ends processes of its own choice."""
    free = free_memory(device)
    if resource is not None and free is not None and STATUS.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + free, hard))


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes held now, and at most since the last reset. Where the system tells the highest alone, it is both."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        return _status("VmRSS"), _status("VmHWM")
    highest = peak_memory(device) or 0
    return highest, highest


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")  # proc(5): sets the peak to what is held now


def _status(name: str) -> int:
    """Bytes of one line of Linux' description of this process."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(name))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usable_backends(names: Sequence[str], device: torch.device) -> list[str]:
    """Those of ``names`` that can run, "auto" by its real name; says why the others cannot."""
    usable = []
    for name in names:
        try:
            usable.append(resolve_backend(name, device))
        except ValueError as error:
            print(f"left out: {error}")
    return list(dict.fromkeys(usable))


def every_backend(device: torch.device) -> list[str]:
    """All that are made for ``device``: a Triton kernel runs on a CPU too, but only in its interpreter."""
    return usable_backends([name for name in BACKENDS if not (device.type == "cpu" and name == "triton")], device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of one large copy: what work bound by memory can reach."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB, 256 MiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), device, 9).seconds


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: what work bound by arithmetic can reach."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.rand(side, side, device=device).to(dtype)
    return 2 * side**3 / measure(lambda: a @ a, device, 9).seconds


def print_row(columns: Sequence[tuple[str, int]], cells: Sequence[str]) -> None:
    """One line of a table; a column is (heading, width), to the left where the width is negative."""
    line = "".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for (_, width), cell in zip(columns, cells, strict=True)
    )
    print(line.rstrip(), flush=True)


def ratio(numerator: float | None, denominator: float | None) -> str:
    """A dash where either is missing, or nothing to divide by."""
    return f"{numerator / denominator:.2f}x" if numerator is not None and denominator else "-"


def add_arguments(parser: argparse.ArgumentParser, limit: int) -> None:
    """What every benchmark takes."""
    parser.add_argument("--device", default=None, help="default: a GPU where there is one")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--limit",
        type=float,
        default=limit,
        metavar="SECONDS",
        help="a measurement, all its runs, that takes longer is left out (default %(default)s)",
    )
