"""`deblur` and `load`: any image, any source of weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config import shipped_weights
from engine.predict.inference import Restorer
from models import WeightsError, XYScanNet, api, deblur, load, xyscannet_t
from models.images import images_to_tensor, tensor_to_images
from models.weights import described_state, read_weights
from tests.workplace import ROOT


def image_of(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (height, width, 3))
    return values.astype(dtype)


@pytest.fixture(scope="module")
def small():
    """A small network whose residual changes every image."""
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1)).eval()


@pytest.mark.parametrize("height, width", [(1, 1), (7, 30), (64, 40)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_size_and_depth_comes_back_as_it_was(small, height, width, dtype):
    image = image_of(height, width, dtype)
    restored = deblur(image, small)
    assert restored.shape == image.shape and restored.dtype == dtype and (restored != image).any()


def test_equals_what_prediction_makes_with_the_shipped_weights():
    image = image_of(45, 62)
    restorer = Restorer(ROOT / shipped_weights("xyscannet_t"), "none", torch.device("cpu"))
    expected = tensor_to_images(restorer.restore(images_to_tensor([image]))[0])[0]
    assert np.array_equal(deblur(image, device="cpu"), expected)


def test_weights_are_loaded_once_and_again_when_they_are_trained_further(small, tmp_path, monkeypatch):
    image, path, other = image_of(16, 16), tmp_path / "weights.pth", XYScanNet(8, (1, 1, 1)).eval()
    loaded = []
    monkeypatch.setattr(api, "load", lambda *given: loaded.append(given) or load(*given))
    for network in (small, other):
        torch.save(described_state(network), path)
        for _ in range(2):
            assert np.array_equal(deblur(image, path, "cpu"), deblur(image, network))
    assert len(loaded) == 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_pil_images_keep_mode_alpha_and_info(small, mode):
    image = Image.fromarray(image_of(20, 30)).convert(mode)
    if mode[-1] == "A":
        image.putalpha(Image.fromarray(image_of(20, 30)[..., 0]))
    image.info["icc_profile"] = b"a profile"
    restored = deblur(image, small)
    assert (restored.mode, restored.size, restored.info) == (mode, image.size, image.info)
    assert restored.tobytes() != image.tobytes()
    if mode[-1] == "A":
        assert restored.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    if mode == "RGB":
        assert np.array_equal(np.asarray(restored), deblur(np.asarray(image), small))


@pytest.mark.parametrize(
    "image, error",
    [
        (np.zeros((8, 8, 3), np.float32), ValueError),
        (np.zeros((8, 8), np.uint8), ValueError),
        (np.zeros((0, 8, 3), np.uint8), ValueError),
        (Image.new("P", (8, 8)), ValueError),
        ("photograph.jpg", TypeError),
    ],
)
def test_what_is_no_such_image_is_refused(small, image, error):
    with pytest.raises(error, match="image must be"):
        deblur(image, small)


def test_a_result_that_is_not_finite_is_refused(small):
    broken = XYScanNet(8, (1, 1, 1)).eval()
    torch.nn.init.constant_(broken.output.weight, float("nan"))
    with pytest.raises(FloatingPointError):
        deblur(image_of(8, 8), broken)


def test_a_network_that_cannot_be_streamed_runs_whole(small):
    class Darker(XYScanNet):
        def residual(self, x):
            return super().residual(x) - 0.1

    darker = Darker(8, (1, 1, 1)).eval()
    darker.load_state_dict(small.state_dict())
    image = np.full((16, 16, 3), 128, np.uint8)
    assert not api._can_stream(darker) and api._can_stream(small)
    assert np.abs(deblur(image, darker) - (deblur(image, small) - 25.5)).max() <= 1


def test_out_of_memory_streams(small, monkeypatch):
    def whole(images):
        raise torch.cuda.OutOfMemoryError("no memory")

    images = torch.rand(1, 3, 16, 16) - 0.5
    with torch.inference_mode():
        expected = small(images)
        monkeypatch.setattr(small, "forward", whole)
        monkeypatch.setitem(api._streams, small, True)
        assert torch.allclose(api._run(small, images), expected, atol=1e-6)


def test_out_of_memory_where_streaming_differs_is_raised(small, monkeypatch):
    def whole(images):
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(small, "forward", whole)
    monkeypatch.setattr(api, "_streams", {})  # what is known of this network from other tests
    monkeypatch.setattr(api, "streams_exactly", lambda network: False)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no memory"):
        api._run(small, torch.zeros(1, 3, 16, 16))


def test_a_photograph_is_turned_upright(small):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    upright = deblur(image.transpose(Image.Transpose.ROTATE_270), small)
    image.getexif()[0x0112] = 6
    restored = deblur(image, small)
    assert restored.size == (16, 24) and np.array_equal(restored, upright)
    assert 0x0112 not in restored.getexif()


def test_loads_shipped_weights_files_and_says_what_there_is(small, tmp_path, monkeypatch):
    shipped = load()
    assert not shipped.training and shipped.description == xyscannet_t().description
    expected = read_weights(ROOT / shipped_weights("xyscannet_t"))
    assert all(torch.equal(value, expected[name]) for name, value in shipped.state_dict().items())
    torch.save(described_state(small), tmp_path / "own.pth")
    assert load(tmp_path / "own.pth", scan_backend="torch").description == small.description
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xyscannet_t").mkdir()  # as in configs/ and in results/
    assert load("xyscannet_t").description == shipped.description
    for source in (Path("xyscannet_t"), "./xyscannet_t"):
        with pytest.raises(WeightsError, match="config.json"):
            load(source)
    for source in ("xyscannet_x", "folder/missing.pth", "missing.pth"):
        with pytest.raises(WeightsError, match="no such"):
            load(source)
