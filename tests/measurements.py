"""Measurements of benchmarks in forks of the process that tests them, without a server that imports PyTorch again."""

import multiprocessing
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure


def fork_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement's process has nothing of this one but its imports, as from the server."""
    if torch.get_num_threads() > 1:  # a fork lacks this process's threads, and would wait for them
        return
    fork = multiprocessing.get_context("fork")

    def process(target, args, daemon):
        sender, *others = args
        return fork.Process(target=_answer, args=(sender, pickle.dumps((target, others))), daemon=daemon)

    monkeypatch.setattr(measure, "_context", lambda: SimpleNamespace(Pipe=fork.Pipe, Process=process))


def _answer(sender, pickled: bytes) -> None:
    for name in [name for name in sys.modules if name.startswith("benchmarks.")]:
        del sys.modules[name]  # imported anew, without what this process has changed in it
        vars(sys.modules["benchmarks"]).pop(name.split(".")[1], None)
    target, others = pickle.loads(pickled)
    target(sender, *others)
