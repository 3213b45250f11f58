"""Whether PyTorch computes fp32 convolutions in TF32, by its older settings and those since PyTorch 2.9."""

import contextlib
from collections.abc import Iterator

import torch


def convolutions_in_tf32() -> bool:
    """PyTorch's default on GPUs that have it."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    return torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Compute convolutions in full fp32 inside the block."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is None:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
        return
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before
