"""A process leaves its group with nothing of it behind."""

import os
import subprocess
import sys

import pytest

from tests.workplace import ROOT, rank_environments

LEAVE = """
import glob
import torch
from torch.nn.parallel import DistributedDataParallel
from engine import distributed

with distributed.process_group("cpu"):
    parallel = DistributedDataParallel(torch.nn.Linear(2, 2))
    parallel(torch.ones(1, 2)).sum().backward()
    cycle = [parallel]  # as in a program whose objects know each other
    cycle.append(cycle)
    del parallel, cycle
print(*(open(name).read().strip() for name in glob.glob("/proc/self/task/*/comm")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc, which lists a process's threads")
def test_no_thread_of_the_group_outlives_it():
    """One that ends with the interpreter aborts the process now and then, and torchrun calls the run failed."""
    (environment,) = rank_environments(1)
    command = [sys.executable, "-c", LEAVE]
    threads = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "python" in threads and "gloo" not in threads
