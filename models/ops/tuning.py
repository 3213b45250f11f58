"""The few numbers that the Triton kernels are launched with, and those found best on GPUs that were measured.

``python -m benchmarks.tuning --write`` searches them on the GPU at hand and puts them into tuned.json.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

TUNED = Path(__file__).with_name("tuned.json")  # {"9.0": {"chunk": 64, …}, …}, by compute capability


@dataclass(frozen=True)
class Numbers:
    """forward_lanes: (sequence, channel) pairs of a program where there are many. forward_registers: a thread, at most.
    chunk: steps between two states kept for backward, an even number. backward_programs: at most, which bounds the
    memory of their states and sums. conv_tile: elements of a program of the convolution; conv_warps: of it."""

    forward_lanes: int = 128
    forward_registers: int = 128
    chunk: int = 32
    backward_programs: int = 2048
    conv_tile: int = 1024
    conv_warps: int = 8


def numbers(device: torch.device) -> Numbers:
    """For the device's compute capability; the defaults for one that was not measured, and on a CPU."""
    if device.type != "cuda":
        return Numbers()
    return tuned().get("{}.{}".format(*torch.cuda.get_device_capability(device)), Numbers())


@functools.cache
def tuned() -> dict[str, Numbers]:
    content = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    return {capability: Numbers(**found) for capability, found in content.items()}
