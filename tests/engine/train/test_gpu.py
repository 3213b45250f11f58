"""Training on a GPU: as on the CPU, over NCCL, by two processes on one device, in bfloat16."""

import os
import subprocess

import pytest
import torch

from tests.workplace import make_config, make_pairs, start, weights

STAGE1 = "train_XYScanNet_stage1.py"
FULL_FP32 = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}  # TF32 turns the signs of small gradients, Adam's first steps
STEPS = ("train.epochs=null", "train.iterations=6", "data.val=null")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """train(device, *overrides, launcher) -> the final weights of a run in a folder of its own."""
    place = tmp_path_factory.mktemp("gpu")
    make_pairs(place / "datasets" / "GoPro")
    make_config(place)
    count = iter(range(100))

    def train(device: str, *overrides: str, processes: int = 0) -> dict[str, torch.Tensor]:
        job = f"tiny@{next(count)}"
        arguments = ("--job_name", job, "--device", device, *STEPS, *overrides)
        process = start(place, STAGE1, *arguments, torchrun=processes, output=subprocess.PIPE, env=FULL_FP32)
        printed = process.stderr.read()
        assert process.wait(240) == 0, printed
        return weights(place, job)

    return train


def assert_close(found: dict, expected: dict, tolerance: float) -> None:
    for name, value in expected.items():
        assert torch.isfinite(found[name]).all(), name
        assert (found[name] - value).abs().max() <= tolerance, name


def test_trains_as_the_cpu_does(trained):
    """Six steps of Adam move a weight by at most 6 x 1e-3; backends differ by rounding, which Adam enlarges."""
    assert_close(trained("cuda"), trained("cpu"), 5e-4)


def test_one_process_over_nccl_trains_as_one_without(trained):
    assert_close(trained("cuda", processes=1), trained("cuda"), 1e-5)


def test_two_processes_share_a_gpu(trained):
    """Over Gloo: NCCL takes one process a device."""
    assert_close(trained("cuda:0", processes=2), trained("cuda"), 5e-4)


def test_bf16_stays_near_fp32(trained):
    assert_close(trained("cuda", "train.precision=bf16"), trained("cuda"), 6e-3)


def test_checkpointed_activations_change_nothing_but_rounding(trained):
    assert_close(trained("cuda", "train.checkpoint_activations=true"), trained("cuda"), 5e-4)
