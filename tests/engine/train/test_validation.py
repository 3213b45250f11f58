"""Validation: it scores what prediction would write, whatever the images' sizes."""

import contextlib

import pytest
import torch

from engine.predict.inference import Restorer
from engine.train.validation import validate
from metrics.psnr import psnr_torch
from models.images import images_to_tensor, tensor_to_images


@pytest.mark.parametrize("height, width", [(20, 12), (33, 41)])
def test_scores_what_prediction_writes(weights, height, width):
    restorer = Restorer(weights, "none", torch.device("cpu"))
    torch.manual_seed(0)
    images = [tuple(torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(2)) for _ in range(3)]
    scores, pictures = validate(images, restorer.network, torch.device("cpu"), contextlib.nullcontext)
    expected = []
    for blurred, sharp in images:
        restored, _ = restorer.restore(images_to_tensor([blurred.permute(1, 2, 0).numpy()]))
        levels = torch.from_numpy(tensor_to_images(restored)).permute(0, 3, 1, 2).double()
        expected.append(psnr_torch(levels / 255, sharp[None].double() / 255).item())
    # A value between two levels may be rounded either way: the network's sums differ in their last bits.
    assert scores["psnr"] == pytest.approx(sum(expected) / 3, abs=1e-3)
    assert [picture.shape for picture in pictures] == [(3, height, 3 * width)] * 3
