"""The weights that come with the repository: what they are, and that they deblur a photograph they have never seen."""

import numpy as np
import torch

from datasets.blur import linear_photo, shaken_pair, to_8_bit
from datasets.images import read_rgb
from datasets.synthesize import LINEAR_LIGHT
from engine.config import load_config, shipped_weights
from engine.predict.inference import Restorer
from metrics.psnr import psnr
from models import xyscannet_t
from models.images import images_to_tensor, tensor_to_images
from models.weights import read_weights
from tests.workplace import ROOT

WEIGHTS = ROOT / shipped_weights("xyscannet_t")


def test_they_are_small_and_those_of_the_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert WEIGHTS.stat().st_size <= 8_000_000
    state, network = read_weights(WEIGHTS), xyscannet_t()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    for stage in (1, 2):
        model = load_config("xyscannet_t", stage).model
        assert (model.dim, model.num_blocks, model.unshuffle) == (network.dim, network.num_blocks, network.unshuffle)


def test_they_deblur_shaken_photographs():
    restorer = Restorer(WEIGHTS, "xyscannet_t", torch.device("cpu"))
    for name in ("astronaut", "room"):
        photo = linear_photo(read_rgb(ROOT / "datasets" / "samples" / f"{name}.jpg"), 256, LINEAR_LIGHT)
        pair = shaken_pair(photo, 256, 10, np.random.default_rng(0))
        blurred, sharp = (to_8_bit(image, LINEAR_LIGHT) for image in pair)
        restored = tensor_to_images(restorer.restore(images_to_tensor([blurred]))[0])[0]
        assert psnr(restored, sharp) > psnr(blurred, sharp) + 0.5, name
