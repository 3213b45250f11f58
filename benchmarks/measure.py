"""Shared by the benchmarks: measurements in separate processes, median time and peak memory, rates, tables.

Memory is the peak while the runs are timed, less what was in use before the first run: memory allocated by PyTorch on a
GPU, the process's resident memory on a CPU.
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
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from engine.memory import free_memory, is_out_of_memory, keep_freed_memory, peak_memory
from models.ops.selective_scan import resolve_backend

try:
    import resource
except ImportError:  # Windows has none; there memory is not limited
    resource = None  # type: ignore[assignment]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OUT_OF_MEMORY = "out of memory"
LEFT_OUT = "-: no baseline to compare with, or left out because it takes too much time or memory"


class Measurement(NamedTuple):
    seconds: float  # median of the runs
    memory: int  # bytes


def measure(work: Callable[[], object], device: torch.device, repeats: int, warm_up: bool = True) -> Measurement:
    """Median time and peak memory of ``repeats`` runs, after a warm-up run (which also compiles kernels)."""
    before, _ = _memory(device)
    if warm_up:
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


def isolated(function: Callable, *arguments, device: torch.device, limit: float):
    """Run ``function(*arguments)`` in its own process, so that no measurement sees the memory of another.

    Args:
        function: defined at the top level of a module; its arguments and result must be picklable.
        limit: seconds after which the process is killed.
    Returns:
        The function's result; None, after a line on stderr, if it takes too long, runs out of memory or is killed.
    Raises:
        RuntimeError: for any other error, with its traceback.
    """
    receiver, sender = _context().Pipe(duplex=False)
    process = _context().Process(target=_answer, args=(sender, device, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv() if receiver.poll(limit) else (None, f"took longer than {limit:g} s")
    except EOFError:
        process.join()
        # By SIGKILL the system ends a process when it is short of memory.
        result, error = None, OUT_OF_MEMORY if process.exitcode == -9 else f"ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    if error and "Traceback" in error:
        raise RuntimeError(f"{function.__name__}{arguments} failed in its process:\n{error}")
    if error:
        tqdm.write(f"left out, {error}: {' '.join(map(str, arguments))}", file=sys.stderr)
    return result


def _context() -> Any:  # typeshed's BaseContext has no Process
    """Fork from a server process that has only imported the networks: a fresh process starts in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "benchmarks.network", "benchmarks.prediction"])
    return context


def _answer(sender: Connection, device: torch.device, function: Callable, arguments: tuple) -> None:
    """Send (result, None) or (None, error message)."""
    try:
        if device.type == "cpu":
            _limit_memory(device)
        keep_freed_memory(device)  # as training and prediction do
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, OUT_OF_MEMORY if is_out_of_memory(error) else traceback.format_exc()))


def _limit_memory(device: torch.device) -> None:
    """Make allocations beyond the free memory fail, so that the system does not kill another process instead."""
    free = free_memory(device)
    if resource is not None and free is not None and STATUS.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + free, hard))


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes in use (now, at most since the last reset); both are the peak where the system reports nothing else."""
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
        CLEAR.write_text("5")  # proc(5): resets the peak to the current value


def _status(name: str) -> int:
    """Bytes of one entry of /proc/self/status."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(name))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usable_backends(names: Sequence[str], device: torch.device) -> list[str]:
    """The backends among ``names`` that can run, "auto" resolved; prints why the others cannot."""
    usable = []
    for name in names:
        try:
            usable.append(resolve_backend(name, device))
        except ValueError as error:
            print(f"left out: {error}")
    return list(dict.fromkeys(usable))


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read plus written, of a large copy: the limit of memory-bound work."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB, 256 MiB
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), device, 9).seconds


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the limit of compute-bound work."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.rand(side, side, device=device).to(dtype)
    return 2 * side**3 / measure(lambda: a @ a, device, 9).seconds


def print_row(columns: Sequence[tuple[str, int]], cells: Sequence[str]) -> None:
    """Print a row of a table. A column is (heading, width); a negative width aligns it to the left."""
    line = "".join(
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for (_, width), cell in zip(columns, cells, strict=True)
    )
    print(line.rstrip(), flush=True)


def ratio(numerator: float | None, denominator: float | None) -> str:
    """As 1.23x; a dash if either is missing or the denominator is zero."""
    return f"{numerator / denominator:.2f}x" if numerator is not None and denominator else "-"


def add_arguments(parser: argparse.ArgumentParser, limit: int) -> None:
    """The flags of every benchmark."""
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs (default %(default)s)")
    parser.add_argument(
        "--limit",
        type=float,
        default=limit,
        metavar="SECONDS",
        help="leave out measurements that take longer, all runs together (default %(default)s)",
    )
