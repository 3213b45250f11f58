"""A process leaves its group with nothing of it behind."""

import os
import subprocess

import pytest
import torch

from engine import distributed
from engine.console import UNREAD
from tests.workplace import program, rank_environments, run, start

LEAVE = """
import glob
for name in [name for name in sys.modules if name.startswith("torch.distributed.nn")]:
    del sys.modules[name]  # as in a new interpreter, where DistributedDataParallel is the first to need it
import torch
from torch.nn.parallel import DistributedDataParallel
from engine import distributed

with distributed.process_group("cpu"):
    import torch.distributed.nn.functional
    parallel = DistributedDataParallel(torch.nn.Linear(2, 2))
    parallel(torch.ones(1, 2)).sum().backward()
    cycle = [parallel]  # as in a program whose objects know each other
    cycle.append(cycle)
    del parallel, cycle
print(*(open(name).read().strip() for name in glob.glob("/proc/self/task/*/comm")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc, which lists a process's threads")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that ends with the interpreter aborts the process now and then, and torchrun calls the run failed."""
    (environment,) = rank_environments(1)
    threads = run(tmp_path, program(tmp_path, LEAVE), env=environment)
    assert "python" in threads and "gloo" not in threads


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    current = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    assert distributed.device("cuda:1") == torch.device("cuda", 1) == current[-1]
    with pytest.raises(distributed.DeviceError, match="'cuda:2' was requested, but PyTorch finds 2"):
        distributed.device("cuda:2")


UNENDING = """
from engine.console import readable_errors

sys.stdout = open("pipe", "w")
with readable_errors():
    for _ in range(50_000):
        print("line")
"""


def test_output_that_nobody_reads_ends_a_script_without_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with start(tmp_path, program(tmp_path, UNENDING), output=subprocess.PIPE) as process:
        with open(tmp_path / "pipe") as reader:
            reader.readline()
        assert process.stderr.read() == "" and process.wait() == UNREAD


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_only_the_first_process_logs_its_messages(tmp_path, rank):
    code = "import logging\nfrom engine.console import readable_errors\nwith readable_errors(): logging.info('here')"
    environment = os.environ | ({} if rank is None else {"RANK": rank})
    assert ("here" in run(tmp_path, program(tmp_path, code), env=environment)) == (rank != "1")
