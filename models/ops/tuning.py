"""The Triton kernels' launch parameters: defaults, and the best ones for the GPUs that were measured.

``python -m benchmarks.tuning --write`` searches them on this machine's GPU and writes them to tuned.json.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

TUNED = Path(__file__).with_name("tuned.json")  # {"9.0": {"chunk": 64, …}, …}, by compute capability


@dataclass(frozen=True)
class LaunchParameters:
    """Launch parameters of one GPU generation.

    forward_lanes: (sequence, channel) pairs per program for large inputs. forward_registers: limit per thread.
    chunk: steps between two states kept for the backward pass, an even number. backward_programs: limit, which bounds
    the memory of their states and sums. conv_tile, conv_warps: elements and warps per program of the causal
    convolution. depthwise_rows, depthwise_warps: rows and warps per program of the depth-wise convolution.
    norm_elements: per program of the norm. product_pixels, product_outputs: per program of the products in fused
    blocks; with a gate, gated_pixels and all outputs up to 256. product_inner: channels that these sum over at a time.
    """

    forward_lanes: int = 128
    forward_registers: int = 128
    chunk: int = 32
    backward_programs: int = 2048
    conv_tile: int = 1024
    conv_warps: int = 8
    depthwise_rows: int = 8
    depthwise_warps: int = 4
    norm_elements: int = 2048
    product_pixels: int = 128
    product_outputs: int = 128
    product_inner: int = 32
    gated_pixels: int = 64


def launch_parameters(device: torch.device) -> LaunchParameters:
    """The parameters tuned for the device's compute capability; the defaults if it was never tuned, and on a CPU."""
    if device.type != "cuda":
        return LaunchParameters()
    return tuned().get("{}.{}".format(*torch.cuda.get_device_capability(device)), LaunchParameters())


@functools.cache
def tuned() -> dict[str, LaunchParameters]:
    content = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    return {capability: LaunchParameters(**found) for capability, found in content.items()}
