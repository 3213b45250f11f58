"""Prediction on a GPU: the CPU's images, streamed, by CUDA graphs, in bfloat16."""

import pytest
import torch

from datasets.images import read_rgb
from engine.config import shipped_weights
from engine.predict.inference import Restorer
from metrics.psnr import psnr
from models.images import images_to_tensor, tensor_to_images
from tests.workplace import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def restored(image: torch.Tensor, device: str = "cuda", **options) -> torch.Tensor:
    restorer = Restorer(ROOT / shipped_weights("xyscannet_t"), "xyscannet_t", torch.device(device), **options)
    return restorer.restore(image)[0].cpu()


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    return images_to_tensor([read_rgb(ROOT / "datasets" / "samples_blurred" / "text.jpg")[:200, :304]])


def test_the_cpus_image_to_one_level(photograph):
    assert (restored(photograph) - restored(photograph, "cpu")).abs().max() <= 1 / 255


@pytest.fixture
def exact(monkeypatch):
    """Without TF32, whose rounding differs between kernels; so without fused blocks, see tests/models/test_fused.py."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_streamed_equals_full(photograph, exact):
    assert (restored(photograph, streamed=True) - restored(photograph)).abs().max() <= 1e-4


def test_cuda_graphs_follow_each_image_and_size(photograph, exact):
    device = torch.device("cuda")
    plain, compiled = (
        Restorer(ROOT / shipped_weights("xyscannet_t"), "xyscannet_t", device, compiled=compiled)
        for compiled in (False, True)
    )
    for image in (photograph, photograph.flip(-1), photograph[..., :96, :128], photograph):
        kept = compiled.restore(image)[0].clone()
        assert (kept - plain.restore(image)[0]).abs().max() <= 1e-4


def test_bf16_stays_above_45_db_of_fp32(photograph):
    images = [tensor_to_images(restored(photograph, precision=precision))[0] for precision in ("bf16", "fp32")]
    assert psnr(*images) > 45
