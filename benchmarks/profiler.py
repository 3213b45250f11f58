"""The most expensive operations of an inference or a training step, by torch.profiler.

    python -m benchmarks.profiler --case 256 --dim 48
    python -m benchmarks.profiler --case train252x2 --dim 144 --precision bf16 --device cuda

In the order of their self times: without called operations, and on a GPU those of the kernels.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.candidates import FUSED, PRECISIONS, Candidate
from benchmarks.network import CASES, inference, shape, training_step
from engine import distributed
from engine.console import readable_errors


def main() -> None:
    arguments = parse_arguments()
    device = distributed.device(arguments.device)
    case = CASES[arguments.case]
    name = FUSED if device.type == "cuda" and not case.training else "ours"  # as in training and prediction
    candidate = Candidate(name, "auto", arguments.precision)
    network = candidate.build(arguments.dim, tuple(arguments.num_blocks), device)
    make = training_step if case.training else inference
    work = make(network, torch.rand(shape(case), device=device) - 0.5, candidate)
    work()  # warm-up, which compiles kernels
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's messages
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as recorded:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    what = "training step" if case.training else "inference"
    print(
        f"{name}, {what} {' x '.join(map(str, shape(case)))}, dim {arguments.dim}, {arguments.precision}, "
        f"{distributed.describe(device)}, torch {torch.__version__}"
    )
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=own, row_limit=arguments.rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="256", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--dim", type=int, default=48, help="channels: 48 (S), 72 or 144 (P) (default %(default)s)")
    parser.add_argument("--num_blocks", type=int, nargs=3, default=[3, 3, 6], metavar="N")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--rows", type=int, default=10, metavar="N", help="rows of the table (default %(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    return parser.parse_args()


if __name__ == "__main__":
    with readable_errors():
        main()
