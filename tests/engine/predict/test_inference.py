"""Images of any size through a network: full, streamed, by tiles; and what happens without memory."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F

from engine import distributed
from engine.memory import PROBE, OutOfMemory, bytes_per_pixel
from engine.predict import inference
from engine.predict.inference import NotFinite, Restorer
from models.streaming import stream
from models.vssm import InterVSSM

CPU = torch.device("cpu")


@functools.cache
def shared(weights, **options) -> Restorer:
    """For tests that change nothing of it."""
    return Restorer(weights, "none", CPU, **options)


def images_of(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (7, 8), (9, 17), (24, 40)])
def test_any_size_comes_back_in_its_size(weights, height, width):
    restored, seconds = shared(weights).restore(images_of(height, width))
    assert restored.shape == (1, 3, height, width) and restored.abs().max() <= 0.5 and seconds > 0


def test_equals_the_network_on_the_padded_image(weights):
    restorer, image = shared(weights), images_of(21, 30)
    with torch.no_grad():
        expected = restorer.network(F.pad(image, (0, 2, 0, 3), mode="reflect"))[..., :21, :30].clamp(-0.5, 0.5)
    assert torch.allclose(restorer.restore(image)[0], expected, atol=1e-6)


def test_tiles_that_cover_the_image_change_nothing(weights):
    image = images_of(21, 30)
    whole, _ = shared(weights, streamed=False).restore(image)
    assert torch.equal(shared(weights, tile=32, overlap=8).restore(image)[0], whole)
    tiled, _ = shared(weights, tile=16, overlap=8).restore(image)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


def test_streamed_equals_whole(weights):
    image = images_of(21, 30, count=2)
    whole, _ = shared(weights, streamed=False).restore(image)
    streamed, _ = shared(weights, streamed=True).restore(image)
    assert torch.allclose(streamed, whole, atol=1e-6)


def test_compiled_network_restores_and_the_plain_one_is_what_is_probed(weights, monkeypatch):
    """What torch.compile makes of the network is bound to it in tests/models; here a stand-in counts its calls."""
    sizes, options = [], {}

    def compile_network(network, **given):
        options.update(given)
        return lambda images: sizes.append(images.shape[-2:]) or network(images)

    monkeypatch.setattr(torch, "compile", compile_network)
    image = images_of(160, 136)  # large enough to be measured for beforehand
    whole, _ = shared(weights, streamed=False).restore(image)
    assert not sizes
    restorer = Restorer(weights, "none", CPU, compiled=True)
    assert torch.equal(restorer.restore(image)[0], whole) and sizes == [(160, 136)]
    assert options == {"mode": "reduce-overhead", "dynamic": False}


def test_bf16_is_near_fp32_and_not_the_same(weights):
    image = images_of(16, 24)
    whole, _ = shared(weights).restore(image)
    half, _ = shared(weights, precision="bf16").restore(image)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.05


def test_a_cpu_streams_unless_told_otherwise(weights, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    assert shared(weights).streamed
    for options in ({"streamed": False}, {"tile": 32}, {"compiled": True}):
        assert not Restorer(weights, "none", CPU, **options).streamed


def test_local_pooling_is_streamed_and_reported(weights):
    image = images_of(32, 64)
    ordinary, local = shared(weights), shared(weights, local_pooling=32)
    assert local.streamed and local.mode == "full images, streamed, averages over 32 pixels"
    assert not torch.allclose(local.restore(image)[0], ordinary.restore(image)[0], atol=1e-6)
    full = shared(weights, local_pooling=32, streamed=False).restore(image)[0]
    assert torch.allclose(local.restore(image)[0], full, atol=1e-6)
    covered = shared(weights, local_pooling=64).restore(image)[0]
    assert torch.allclose(covered, ordinary.restore(image)[0], atol=1e-6)


# Without memory.


def allocates(pixels: int, calls: list):
    """A hook that fails as PyTorch's CPU allocator does, on images of more than ``pixels``; notes their sizes."""

    def hook(module, arguments):
        calls.append(tuple(arguments[0].shape[-2:]))
        if calls[-1][0] * calls[-1][1] > pixels:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 123 bytes")

    return hook


@pytest.fixture
def restorer(weights) -> Restorer:
    """As on a GPU: images are not streamed from the start, and memory is not looked at beforehand."""
    return Restorer(weights, "none", CPU, streamed=False)


@pytest.fixture
def no_streaming(monkeypatch):
    """Streaming runs out of memory, too, for more than a probe."""

    def fail(network, images, *band):
        if images.shape[-2] * images.shape[-1] > PROBE**2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return stream(network, images, *band)

    monkeypatch.setattr(inference, "stream", fail)


def advised_tile(error: pytest.ExceptionInfo) -> int:
    return int(re.search(r"--tile (\d+)", str(error.value))[1])


def test_out_of_memory_streams_this_and_all_later_images(weights, restorer, caplog):
    image, calls = images_of(80, 96), []
    restorer.network.register_forward_pre_hook(allocates(64 * 64, calls))
    small = restorer.restore(images_of(16, 24))
    assert not restorer.streamed and small[0].shape == (1, 3, 16, 24)
    restored, _ = restorer.restore(image, "holiday.jpg")
    assert restorer.streamed and restorer.mode == "full images, streamed"
    assert torch.allclose(restored, shared(weights, streamed=False).restore(image)[0], atol=1e-6)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "holiday.jpg" in caplog.text
    calls.clear()
    restorer.restore(image, "next.jpg")
    assert not calls and len(caplog.records) == 1
    assert restorer.maker == shared(weights).maker  # the same result to rounding, so the same record


def test_what_streaming_does_not_fit_names_the_image_its_need_and_a_tile_that_fits(
    weights, restorer, no_streaming, monkeypatch
):
    image = images_of(203, 256)
    free = bytes_per_pixel(restorer.network, CPU) * 180 * 180
    monkeypatch.setattr(inference, "free_memory", lambda device: free)
    with pytest.raises(OutOfMemory, match=r"^holiday.jpg: .*256 x 208 pixels, streamed: .* GiB needed") as error:
        restorer.restore(image, "holiday.jpg")
    tile = advised_tile(error)
    assert tile % 8 == 0 and 0.75 * 180**2 < tile**2 < 180**2
    tiled = Restorer(weights, "none", CPU, tile=tile)
    tiled.network.register_forward_pre_hook(allocates(180 * 180, []))
    assert tiled.restore(image)[0].shape == image.shape


def test_a_network_that_does_not_stream_exactly_is_not_streamed(restorer, monkeypatch):
    monkeypatch.setattr(InterVSSM, "dual_scanner", lambda self, F_h, F_v: (F_h.relu(), F_v))
    restorer.network.register_forward_pre_hook(allocates(PROBE**2, []))
    with pytest.raises(OutOfMemory) as error:
        restorer.restore(images_of(136, 160))
    assert not restorer.streamed and advised_tile(error) <= PROBE


@pytest.mark.parametrize("streamed", [True, False])
def test_a_cpu_is_not_asked_for_memory_it_does_not_have(weights, monkeypatch, streamed):
    """Linux would promise it and then kill the process."""
    restorer, image, calls = Restorer(weights, "none", CPU, streamed=streamed), images_of(136, 160), []
    needed = {mode: restorer._measure(mode) * 136 * 160 for mode in (True, False)}
    assert needed[True] < 0.6 * needed[False]
    restorer.network.register_forward_pre_hook(allocates(10**9, calls))
    monkeypatch.setattr(inference, "free_memory", lambda device: 1.1 * needed[True])
    assert restorer.restore(image)[0].shape == image.shape and restorer.streamed  # in full it was not even tried
    monkeypatch.setattr(inference, "free_memory", lambda device: 0.9 * needed[True])
    monkeypatch.setattr(inference, "stream", lambda *arguments: pytest.fail("streamed without memory"))
    with pytest.raises(OutOfMemory) as error:
        restorer.restore(image)
    assert max(height * width for height, width in [*calls, (0, 0)]) <= PROBE**2
    assert 32 < advised_tile(error) < 136


def test_streaming_takes_what_is_measured(restorer):
    """On a larger image and in wider bands than those measured; in full, it takes far more."""
    side = 384
    measured = bytes_per_pixel(lambda _: stream(restorer.network, torch.zeros(1, 3, side, side)), CPU) * PROBE**2
    assert 0.8 * measured < restorer._measure(streamed=True) * side**2 < 1.4 * measured
    assert measured < 0.6 * restorer._measure(streamed=False) * side**2


def test_a_smaller_tile_and_batch_are_advised_whatever_is_measured(weights):
    restorer = Restorer(weights, "none", CPU, tile=160)
    restorer.network.register_forward_pre_hook(allocates(130 * 130, []))
    with pytest.raises(OutOfMemory, match=r"a\.png: .* 2 x a tile of 160 x 160 .* or --batch_size 1$") as error:
        restorer.restore(images_of(256, 320, count=2), "a.png")
    assert advised_tile(error) < 130 and not restorer.streamed


def test_where_nothing_fits_another_device_is_advised(weights):
    restorer = Restorer(weights, "none", CPU, tile=64)
    restorer.network.register_forward_pre_hook(allocates(0, []))
    with pytest.raises(OutOfMemory, match="^image: .* another device"):
        restorer.restore(images_of(64, 64))


def test_other_errors_pass_unchanged(restorer):
    def broken(module, arguments):
        raise RuntimeError("shapes do not match")

    restorer.network.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        restorer.restore(images_of(8, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_out_of_memory_streams_and_then_names_a_tile_that_fits(weights):
    device = torch.device("cuda", 0)
    restorer, image = Restorer(weights, "none", device), images_of(3000, 3000)
    needed = {mode: restorer._measure(mode) * 3000 * 3000 for mode in (True, False)}
    for mode, share in ((False, 0.7), (True, 0.5)):
        torch.cuda.empty_cache()
        left = int(share * needed[mode])
        block = torch.empty(torch.cuda.mem_get_info(device)[0] - left, dtype=torch.uint8, device=device)
        if mode:
            with pytest.raises(OutOfMemory, match="cuda:0") as error:
                restorer.restore(image)
            tiled = Restorer(weights, "none", device, tile=advised_tile(error))
            assert tiled.restore(image)[0].shape == image.shape
        else:
            assert restorer.restore(image)[0].shape == image.shape and restorer.streamed
        del block


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{"streamed": False}, {"streamed": True}, {"tile": 16, "overlap": 8}])
def test_a_result_that_is_not_finite_stops_and_names_its_image(weights, value, options):
    restorer, images = shared(weights, **options), images_of(24, 32, count=3)
    images[1, 0, 3, 4] = value
    with pytest.raises(NotFinite, match="^second: "):
        restorer.restore(images, "first", "second", "third")


@pytest.mark.parametrize("name", ["cpuu", "meta", "cuda:x"])
def test_a_device_that_is_none_is_an_error_of_ours(name):
    with pytest.raises(distributed.DeviceError):
        distributed.device(name)
