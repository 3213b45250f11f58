"""Both generations of PyTorch's settings are read, and left as they were."""

import pytest
import torch

from models.ops.tf32 import convolutions_in_tf32, without_tf32

cudnn = torch.backends.cudnn


@pytest.mark.parametrize("allowed", [True, False])
def test_the_older_setting(monkeypatch, allowed):
    monkeypatch.setattr(cudnn, "allow_tf32", allowed)
    assert convolutions_in_tf32() is allowed
    with without_tf32():
        assert not convolutions_in_tf32()
    assert convolutions_in_tf32() is cudnn.allow_tf32 is allowed


@pytest.mark.skipif(not hasattr(cudnn, "conv"), reason="the newer settings came with PyTorch 2.9")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_the_newer_setting(precision):
    """After which reading the older one is an error in PyTorch."""
    before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, precision  # monkeypatch would delete it at the end
    try:
        assert convolutions_in_tf32() is (precision == "tf32")
        with without_tf32():
            assert not convolutions_in_tf32()
        assert cudnn.conv.fp32_precision == precision
    finally:
        cudnn.conv.fp32_precision = before
