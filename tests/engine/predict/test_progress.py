"""The bar within an image: it moves, ends near its end, and leaves the network as it was."""

import sys

import pytest
import torch
from torch import nn

from engine.predict import progress
from engine.predict.inference import Restorer
from models import streaming

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [{}, {"streamed": False}, {"tile": 64, "overlap": 16}, {"self_ensemble": True}])
def test_the_work_is_known_before(weights, monkeypatch, options):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "SMALL", 0)
    bars = []

    class Bar(progress.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            self.steps = []
            bars.append(self)

        def update(self, n=1):
            self.steps.append(n)
            return super().update(n)

    monkeypatch.setattr(progress, "tqdm", Bar)
    restorer = Restorer(weights, "none", CPU, **options)
    height, width = (64, 48) if restorer.self_ensemble else (160, 96)
    with progress.show_progress(restorer, height, width, "image"):
        restorer.restore(torch.zeros(1, 3, height, width))
    (bar,) = bars
    assert 0.9 * bar.total < bar.n <= bar.total and len(bar.steps) > 20
    assert sum(bar.steps[: len(bar.steps) // 10]) < 0.5 * bar.total and max(bar.steps) < 0.2 * bar.total
    assert not streaming.listeners
    assert not any(module._forward_hooks for module in restorer.network.modules() if isinstance(module, nn.Module))


def test_no_bar_without_a_terminal(weights, monkeypatch):
    monkeypatch.setattr(progress, "tqdm", None)
    monkeypatch.setattr(progress, "SMALL", 0)
    restorer = Restorer(weights, "none", CPU)
    with progress.show_progress(restorer, 16, 16, "image"):
        assert restorer.restore(torch.zeros(1, 3, 16, 16))[0].shape == (1, 3, 16, 16)
