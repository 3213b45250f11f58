"""What several tests of training share."""

import pytest

from tests.thin import Thin


@pytest.fixture
def thin(monkeypatch):
    """This process trains a network with few layers, of which each costs the same time however small it is."""
    monkeypatch.setattr("engine.train.run.XYScanNet", Thin)
