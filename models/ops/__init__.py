"""The network's fast operations: each has a readable reference (``…_ref``) and backends with the same signature."""

import torch


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
