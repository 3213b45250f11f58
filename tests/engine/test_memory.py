"""What is free, what is used, what is needed."""

import ctypes

import pytest
import torch

from engine import memory
from engine.memory import bytes_per_pixel, free_memory, is_out_of_memory, peak_memory
from tests.workplace import program, run

CPU = torch.device("cpu")


def test_bytes_per_pixel_of_known_networks():
    def lean(images):  # one map of 100 channels at a time, and the result
        for _ in range(3):
            torch.empty(1, 100, *images.shape[-2:])
        return torch.empty_like(images)

    def greedy(images):  # three at once
        return [torch.empty(1, 100, *images.shape[-2:]) for _ in range(3)]

    assert bytes_per_pixel(lean, CPU) == pytest.approx(400, rel=0.02)
    assert bytes_per_pixel(greedy, CPU) == pytest.approx(1200, rel=0.02)


def test_what_counts_as_out_of_memory():
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        assert is_out_of_memory(error)  # what PyTorch's own allocator says
    else:
        pytest.fail("2^60 bytes were allocated")
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_memory_of_this_process():
    before = peak_memory(CPU)
    block = torch.ones(32 * 2**20)
    assert peak_memory(CPU) >= before and peak_memory(CPU) > block.nbytes
    assert 0 < free_memory(CPU) < 2**50


def test_the_tightest_limit_of_a_batch_job_counts(tmp_path, monkeypatch):
    """Slurm limits the job and the step; the group of the task itself has none."""
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    (tmp_path / "cgroup").write_text("0::/job/step/task\n")
    (tmp_path / "groups/job/step/task").mkdir(parents=True)
    for group, limit, used in (("job", "1000000", 300), ("job/step", "800000", 200), ("job/step/task", "max", 100)):
        folder = tmp_path / "groups" / group
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used * 1000}\n")
        (folder / "memory.stat").write_text("anon 1000\nfile 50000\n")
    assert memory._left_in_cgroup() == 800000 - 150000 == free_memory(CPU)
    (tmp_path / "groups/job/step/memory.max").write_text("max\n")
    assert memory._left_in_cgroup() == 1000000 - 250000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo"), reason="not glibc")
def test_freed_memory_is_kept_for_the_next_allocations(tmp_path):
    """In a process of its own and its fork, since the setting lasts: free bytes once 80 MB are freed."""
    kept, returned = map(int, run(tmp_path, program(tmp_path, FREE_BYTES)).split())
    assert kept > 80_000_000
    assert returned < 8_000_000


FREE_BYTES = """
import ctypes, os, torch
from engine.memory import keep_freed_memory

class MallInfo(ctypes.Structure):  # malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in names.split()]

if fork := os.fork():
    os.waitpid(fork, 0)
else:
    keep_freed_memory(torch.device("cpu"))
mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = MallInfo
maps = [torch.ones(4_000_000) for _ in range(5)]
del maps
print(mallinfo().fordblks)
"""
