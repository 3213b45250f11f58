"""Time and memory are what the work took; a measurement that cannot end leaves a dash and harms nothing."""

import os
import signal
import time

import pytest
import torch

from benchmarks.measure import copy_rate, isolated, matmul_rate, measure, ratio

CPU = torch.device("cpu")


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def allocate(numbers: int) -> int:
    """Bytes, where 64 MiB are held before and four a number more while it runs."""
    held = torch.ones(2**24)
    return measure(lambda: torch.ones(numbers).sum() + held[0], CPU, 3).memory


def divide(number: float) -> float:
    return 1 / number


def end_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_time_is_the_median():
    pauses = iter([0.0, 0.3, 0.02, 0.02])  # the first is the warm-up
    assert 0.02 <= measure(lambda: time.sleep(next(pauses)), CPU, 3).seconds < 0.2


def test_memory_is_what_the_work_adds():
    memory = isolated(allocate, 2**25, device=CPU, limit=60)  # 128 MiB
    assert 2**27 <= memory < 2**27 + 2**24


def test_result_comes_from_another_process():
    assert isolated(os.getpid, device=CPU, limit=60) != os.getpid()


def test_what_takes_too_long_is_left_out():
    started = time.perf_counter()
    assert isolated(sleep, 30.0, device=CPU, limit=0.5) is None
    assert time.perf_counter() - started < 20
    assert isolated(sleep, 0.0, device=CPU, limit=60) == "done"


def test_what_needs_too_much_memory_is_left_out():
    assert isolated(torch.ones, 2**45, device=CPU, limit=60) is None
    assert isolated(end_itself, device=CPU, limit=60) is None


def test_errors_are_told():
    with pytest.raises(RuntimeError, match=r"divide\(0,\) failed in its process:[\s\S]*ZeroDivisionError"):
        isolated(divide, 0, device=CPU, limit=60)


def test_rates_are_a_processors():
    rates = (
        isolated(copy_rate, CPU, device=CPU, limit=300),
        isolated(matmul_rate, CPU, torch.float32, device=CPU, limit=300),
    )
    assert all(10**7 < rate < 10**15 for rate in rates)


def test_ratio():
    assert ratio(3.0, 2.0) == "1.50x" and ratio(None, 2.0) == ratio(1.0, None) == ratio(1.0, 0) == "-"
