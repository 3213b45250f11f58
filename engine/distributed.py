"""One process or many: the few calls the loops need, all of them no-ops in a single process.

Started by ``torchrun``, every process finds its place in RANK, LOCAL_RANK and WORLD_SIZE.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

# A rank may spend long on its own (building a cache, scoring full images) before the others hear from it again.
TIMEOUT = datetime.timedelta(hours=2)


class DeviceError(ValueError):
    """A device that is not there."""


class PeerError(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


@contextlib.contextmanager
def process_group(device_name: str | None = None) -> Iterator[None]:
    """Join the group that torchrun has started (NCCL on GPUs, Gloo on CPUs); leave it at the end."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    chosen = device(device_name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def device(name: str | None = None) -> torch.device:
    """The device called ``name``; without one this process's own GPU, or the CPU where there is none."""
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"there is no device {name!r}; use cpu, cuda, or a number of a GPU as in cuda:1")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r} is asked for, but PyTorch finds no CUDA device; use --device cpu")
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank() % torch.cuda.device_count())
    return chosen


def describe(device: torch.device) -> str:
    """The device in words, for reports."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End every process where the block fails in one: the first of those raises its error, the others are silent.

    The processes wait for each other at the block's end; inside it they must not.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = gather(failure is not None)
    if any(failed):
        if failure is not None and failed.index(True) == rank():
            raise failure
        sys.exit(2)


def lost_peer(error: BaseException) -> bool:
    """Whether an exchange between processes failed, as it does when one of them has ended."""
    phrases = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return is_distributed() and (
        isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(p in str(error) for p in phrases)
    )


def barrier() -> None:
    if is_distributed():
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let each node's first process do something once, a download say, before its neighbours find it done."""
    if local_rank() != 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def gather(obj: object) -> list:
    """Every rank's ``obj``, in rank order, on every rank."""
    if not is_distributed():
        return [obj]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, obj)
    return gathered


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's ``tensor``; the argument itself stays as it is."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on any rank; the same answer on all."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device))) if is_distributed() else flag
