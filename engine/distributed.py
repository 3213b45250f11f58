"""Several processes: the few collective operations that the loops need, all of them no-ops in a single process.

Processes started by ``torchrun`` find their ranks in RANK, LOCAL_RANK and WORLD_SIZE.
"""

import contextlib
import datetime
import gc
import importlib
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

# A rank may be busy for long (building a cache, scoring full images) while the others wait.
TIMEOUT = datetime.timedelta(hours=2)


class DeviceError(ValueError):
    """The device asked for does not exist."""


class PeerError(RuntimeError):
    """Another process of the run has ended, so this one cannot continue."""


@contextlib.contextmanager
def process_group(device_name: str | None = None) -> Iterator[None]:
    """Join the group that torchrun has started, and leave it at the end.

    GPU tensors are exchanged by NCCL where each process has a GPU of its own; tensors on the CPU by Gloo, without
    waiting for a GPU.

    Raises:
        PeerError: in place of a failed exchange with another process, which has ended.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    chosen, backend = device(device_name), "gloo"
    if chosen.type == "cuda":
        gpus = 1 if ":" in (device_name or "") else torch.cuda.device_count()
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= gpus:  # NCCL needs a GPU for each process
            backend = "cpu:gloo,cuda:nccl"
    # Before the group exists: otherwise this module's default arguments hold a reference to it.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    except Exception as error:
        if lost_peer(error):
            raise PeerError(
                "another process of this run has ended; its own message says why. What is saved is kept, and the same "
                "command resumes from it"
            ) from error
        raise
    finally:
        dist.destroy_process_group()
        # Reference cycles through DistributedDataParallel keep the group's threads, and one still running at exit can
        # abort the process.
        gc.collect()


def device(name: str | None = None) -> torch.device:
    """The device called ``name``; by default this process's own GPU, or the CPU where there is none.

    A GPU becomes PyTorch's current one, so that nothing is allocated on another.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; use cpu, cuda or cuda:N with the number of a GPU, such as cuda:1")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r} was requested, but PyTorch finds no CUDA device; use --device cpu")
        found = torch.cuda.device_count()
        if (chosen.index or 0) >= found:
            raise DeviceError(f"device {name!r} was requested, but PyTorch finds {found} CUDA devices, from cuda:0 on")
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank() % found)
        torch.cuda.set_device(chosen)
    return chosen


def describe(device: torch.device) -> str:
    """The device's name, for reports."""
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
    """Whether this process writes files and messages for the user."""
    return rank() == 0


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """End every process if the block fails in one: the lowest such rank raises its error, the others exit silently.

    The processes wait for each other at the end of the block, and must not inside it.
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
    """Whether the error is a failed exchange between processes, which happens when one of them has ended."""
    phrases = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return is_distributed() and (
        isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(p in str(error) for p in phrases)
    )


def barrier() -> None:
    """Wait until every process is here."""
    any_rank(False)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the first process of each node run the block before the others, for example to download a file once."""
    if local_rank() != 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def gather(obj: object) -> list:
    """Every rank's ``obj`` in rank order, on every rank."""
    if not is_distributed():
        return [obj]
    gathered = [None] * world_size()
    with torch.inference_mode(False):  # in inference mode PyTorch 2.4 refuses to fill its own buffers
        dist.all_gather_object(gathered, obj)
    return gathered


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's ``tensor``, which itself is not changed."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank; the same answer on all. Does not wait for a GPU."""
    return bool(sum_over_ranks(torch.tensor(float(flag)))) if is_distributed() else flag
