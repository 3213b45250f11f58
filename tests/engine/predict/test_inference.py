"""Images of any size through a network: padding, tiles, precision, levels, and what happens without memory."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine import distributed
from engine.config import ConfigError
from engine.memory import OutOfMemory
from engine.predict import inference
from engine.predict.inference import (
    MissingWeights,
    NotFinite,
    Restorer,
    find_weights,
    images_to_tensor,
    pad_by_reflection,
    tensor_to_images,
)
from engine.predict.options import add_flags, check_flags
from tests.workplace import make_config

CPU = torch.device("cpu")


def images_of(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (2, 3), (5, 16), (8, 8), (21, 30)])
def test_padding_reflects_as_numpy_does(height, width):
    image = images_of(height, width)
    padded = pad_by_reflection(image)
    widths = ((0, 0), (0, 0), (0, -height % 8), (0, -width % 8))
    assert np.array_equal(padded.numpy(), np.pad(image.numpy(), widths, mode="reflect"))


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (7, 8), (9, 17), (24, 40)])
def test_any_size_comes_back_in_its_size(weights, height, width):
    restored, seconds = Restorer(weights, "none", CPU).restore(images_of(height, width))
    assert restored.shape == (1, 3, height, width) and restored.abs().max() <= 0.5 and seconds > 0


def test_equals_the_network_on_the_padded_image(weights):
    restorer, image = Restorer(weights, "none", CPU), images_of(21, 30)
    with torch.no_grad():
        expected = restorer.network(F.pad(image, (0, 2, 0, 3), mode="reflect"))[..., :21, :30].clamp(-0.5, 0.5)
    assert torch.allclose(restorer.restore(image)[0], expected, atol=1e-6)


def test_tiles_that_cover_the_image_change_nothing(weights):
    image = images_of(21, 30)
    whole, _ = Restorer(weights, "none", CPU, streamed=False).restore(image)
    assert torch.equal(Restorer(weights, "none", CPU, tile=32, overlap=8).restore(image)[0], whole)
    tiled, _ = Restorer(weights, "none", CPU, tile=16, overlap=8).restore(image)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)


def test_streamed_equals_whole(weights):
    image = images_of(21, 30, count=2)
    whole, _ = Restorer(weights, "none", CPU, streamed=False).restore(image)
    streamed, _ = Restorer(weights, "none", CPU, streamed=True).restore(image)
    assert torch.allclose(streamed, whole, atol=1e-6)


def test_compiled_network_restores_and_the_plain_one_is_what_is_probed(weights, monkeypatch):
    """What torch.compile makes of the network is bound to it in tests/models; here a stand-in counts its calls."""
    sizes, options = [], {}

    def compile_network(network, **given):
        options.update(given)
        return lambda images: sizes.append(images.shape[-2:]) or network(images)

    monkeypatch.setattr(torch, "compile", compile_network)
    image = images_of(160, 136)  # large enough to be measured for beforehand
    whole, _ = Restorer(weights, "none", CPU, streamed=False).restore(image)
    assert not sizes
    restorer = Restorer(weights, "none", CPU, compiled=True)
    assert torch.equal(restorer.restore(image)[0], whole) and sizes == [(160, 136)]
    assert options == {"mode": "reduce-overhead", "dynamic": False}


def test_a_cpu_streams_unless_told_otherwise(weights):
    assert Restorer(weights, "none", CPU).streamed
    for options in ({"streamed": False}, {"tile": 32}, {"compiled": True}):
        assert not Restorer(weights, "none", CPU, **options).streamed
    restorer = Restorer(weights, "none", CPU, tile="auto")
    assert restorer.choose_mode(1, 64, 64).startswith("full images, streamed: ")


def needed(weights, height: int, width: int, streamed: bool = False) -> float:
    return Restorer(weights, "none", CPU, streamed=streamed)._needed(1, height, width)


@pytest.fixture(scope="module")
def whole_and_streamed(weights) -> tuple[float, float]:
    """Bytes that a 640 x 480 image needs."""
    return needed(weights, 480, 640), needed(weights, 480, 640, streamed=True)


def settled(weights, monkeypatch, free: float | None, **options) -> tuple[Restorer, str]:
    monkeypatch.setattr(inference, "free_memory", lambda device: free)
    restorer = Restorer(weights, "none", CPU, tile="auto", streamed=False, **options)  # as on a GPU
    return restorer, restorer.choose_mode(1, 480, 640)


def test_auto_takes_whole_images_if_they_fit_then_streamed_ones_then_tiles(weights, whole_and_streamed, monkeypatch):
    whole, streamed = whole_and_streamed
    assert streamed < 0.7 * whole
    restorer, line = settled(weights, monkeypatch, 1.3 * whole)
    assert (restorer.tile, restorer.streamed) == (None, False) and line.startswith("full images: ")
    restorer, line = settled(weights, monkeypatch, 1.3 * streamed)
    assert (restorer.tile, restorer.streamed) == (None, True) and line.startswith("full images, streamed: ")
    free = 0.6 * streamed
    restorer, line = settled(weights, monkeypatch, free)
    tile = restorer.tile
    assert not restorer.streamed and line.startswith(f"tiles of {tile} x {tile} pixels: ") and "\n" not in line
    assert whole * tile**2 / (480 * 640) <= 0.8 * free < 1.2 * whole * (tile + 8) ** 2 / (480 * 640)
    restorer, line = settled(weights, monkeypatch, None)
    assert (restorer.tile, restorer.streamed) == (None, False) and "cannot be told" in line


def test_auto_is_settled_anew_for_every_image(weights, whole_and_streamed, monkeypatch):
    restorer, _ = settled(weights, monkeypatch, 0.6 * whole_and_streamed[1])
    assert restorer.tile
    restorer.choose_mode(1, 64, 64)
    assert restorer.tile is None


def test_auto_refuses_tiles_that_are_all_overlap(weights, monkeypatch):
    with pytest.raises(OutOfMemory, match="not enough for tiles that overlap by 64 pixels"):
        settled(weights, monkeypatch, 10**6, overlap=64)


def test_bf16_is_near_fp32_and_not_the_same(weights):
    image = images_of(16, 24)
    whole, _ = Restorer(weights, "none", CPU).restore(image)
    half, _ = Restorer(weights, "none", CPU, precision="bf16").restore(image)
    assert half.dtype == torch.float32
    assert 0 < (half - whole).abs().max() < 0.05


def test_levels_there_and_back():
    every = np.arange(65536, dtype=np.uint16).reshape(64, 1024, 1).repeat(3, axis=2)
    for image in (every, (every // 256).astype(np.uint8)):
        tensor = images_to_tensor([image, image])
        assert tensor.shape == (2, 3, 64, 1024) and tensor.min() == -0.5 and tensor.max() == 0.5
        assert np.array_equal(tensor_to_images(tensor, image.dtype.type)[1], image)


def test_levels_are_clamped_and_rounded_to_the_nearest():
    values = torch.tensor([-9.0, -0.5, 0.4 / 255 - 0.5, 0.6 / 255 - 0.5, 254.6 / 255 - 0.5, 0.5, 9.0])
    levels = tensor_to_images(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))
    assert levels[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_local_pooling_is_the_networks_own_and_not_streamed(weights):
    image = images_of(32, 64)
    ordinary, local = Restorer(weights, "none", CPU), Restorer(weights, "none", CPU, local_pooling=32)
    assert ordinary.streamed and not local.streamed and local.mode == "full images, averages over 32 pixels"
    assert not torch.allclose(local.restore(image)[0], ordinary.restore(image)[0], atol=1e-6)
    covered = Restorer(weights, "none", CPU, local_pooling=64).restore(image)[0]
    assert torch.allclose(covered, ordinary.restore(image)[0], atol=1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--local_pooling", "30"], "--local_pooling: must be a positive multiple of 8, got 30"),
        (["--local_pooling", "32", "--stream"], "not for --stream"),
        (["--local_pooling", "32", "--tile", "auto"], "not for --stream and --tile auto"),
    ],
)
def test_flags_of_local_pooling_that_cannot_be(flags, message, capsys):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    with pytest.raises(SystemExit):
        check_flags(parser, parser.parse_args(flags))
    assert message in capsys.readouterr().err


def test_missing_weights_say_what_is_there_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2)
    with pytest.raises(ConfigError, match="configs/jay/config_stage2.yaml: no such file; the jobs there are: j"):
        find_weights(None, "jay", "best")
    with pytest.raises(MissingWeights, match="results/j/models holds no weights") as error:
        find_weights(None, "j", "best")
    assert "train_XYScanNet_stage1.py" not in str(error.value)  # it has no stage 1 of its own
    models = tmp_path / "results" / "j" / "models"
    models.mkdir(parents=True)
    (models / "final_XYScanNet_stage2.pth").touch()
    with pytest.raises(MissingWeights) as error:
        find_weights(None, "j", "best")
    for part in (
        "results/j/models/best_XYScanNet_stage2.pth",
        "holds final_XYScanNet_stage2.pth",
        "--weights FILE",
        "python train_XYScanNet_stage2.py --job_name j",
    ):
        assert part in str(error.value)
    with pytest.raises(MissingWeights, match="other.pth, the file given with --weights"):
        find_weights(tmp_path / "other.pth", "j", "best")
    assert str(find_weights(None, "j", "final")) == "results/j/models/final_XYScanNet_stage2.pth"


def test_a_jobs_own_weights_come_before_those_shipped_with_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2)
    shipped = tmp_path / "configs" / "j" / "weights.pth"
    shipped.touch()
    assert str(find_weights(None, "j", "best")) == "configs/j/weights.pth"
    with pytest.raises(MissingWeights, match="other.pth, the file given with --weights"):
        find_weights(tmp_path / "other.pth", "j", "best")
    own = tmp_path / "results" / "j" / "models" / "best_XYScanNet_stage2.pth"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_weights(None, "j", "best").resolve() == own


def test_a_scan_backend_of_another_machine_gives_way(weights, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2, model={"scan_backend": "mamba_ssm"})
    image = images_of(16, 24)
    restored, _ = Restorer(weights, "j", CPU).restore(image)
    assert "scan backend mamba_ssm cannot run on cpu (it runs on cuda; use torch): auto is used" in caplog.text
    assert torch.equal(restored, Restorer(weights, "none", CPU).restore(image)[0])


def out_of_memory_above(pixels: int):
    """A network that keeps 1000 bytes a pixel and fails as PyTorch's allocator does above `pixels`."""

    def network(images: torch.Tensor) -> torch.Tensor:
        if images.shape[-2] * images.shape[-1] > pixels:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 123 bytes"
            )
        torch.empty(1, 250, *images.shape[-2:])
        return images

    return network


def advised_tile(error: pytest.ExceptionInfo) -> int:
    assert "--tile auto" in str(error.value)
    return int(str(error.value).split("--tile ")[1].split()[0].rstrip(",;"))


def test_running_out_of_memory_names_a_tile_that_fits(weights, monkeypatch):
    restorer = Restorer(weights, "none", CPU, streamed=False)
    monkeypatch.setattr(restorer, "network", out_of_memory_above(200 * 200))
    monkeypatch.setattr(inference, "free_memory", lambda device: 200 * 200 * 1000)
    monkeypatch.setattr(restorer, "_expect_to_fit", lambda padded, name: None)
    image = images_of(250, 320)
    with pytest.raises(OutOfMemory, match="y.jpg: out of memory on cpu for 1 x 320 x 256 pixels.* --stream") as error:
        restorer.restore(image, "holiday.jpg")
    tile = advised_tile(error)
    assert tile % 8 == 0 and 150 < tile <= 200
    restorer.tile = tile
    assert torch.allclose(restorer.restore(image)[0], image, atol=1e-6)


def test_the_cpu_is_not_asked_for_memory_it_does_not_have(weights, monkeypatch):
    """Linux would promise it and then kill the process."""
    restorer = Restorer(weights, "none", CPU, streamed=False)
    monkeypatch.setattr(inference, "free_memory", lambda device: 200 * 200 * 1000)
    monkeypatch.setattr(restorer, "network", out_of_memory_above(10**9))
    with pytest.raises(OutOfMemory, match="not enough memory on cpu") as error:
        restorer.restore(images_of(256, 320), "holiday.jpg")
    restorer.tile = advised_tile(error)
    assert restorer.restore(images_of(256, 320))[0].shape == (1, 3, 256, 320)


def test_a_smaller_tile_is_advised_whatever_the_estimate_says(weights, monkeypatch):
    restorer = Restorer(weights, "none", CPU, tile=160)
    monkeypatch.setattr(restorer, "network", out_of_memory_above(130 * 130))
    with pytest.raises(OutOfMemory, match="for 2 x 160 x 160 pixel tile.* or --batch_size 1") as error:
        restorer.restore(images_of(256, 320, count=2), "a.png")
    assert advised_tile(error) < 160


def test_other_errors_pass_unchanged(weights, monkeypatch):
    restorer = Restorer(weights, "none", CPU, streamed=False)

    def broken(images):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(restorer, "network", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        restorer.restore(images_of(8, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_runs_out_of_memory_and_the_tile_named_fits(weights):
    device = torch.device("cuda", 0)
    restorer, image = Restorer(weights, "none", device), images_of(3000, 3000)
    block = torch.empty(torch.cuda.mem_get_info(device)[0] - 2 * 2**30, dtype=torch.uint8, device=device)
    with pytest.raises(OutOfMemory, match="out of memory on cuda:0 .*--tile") as error:
        restorer.restore(image)
    restorer.tile = advised_tile(error)
    assert restorer.restore(image)[0].shape == image.shape
    del block


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{"streamed": False}, {"streamed": True}, {"tile": 16, "overlap": 8}])
def test_a_result_that_is_not_finite_stops_and_names_its_image(weights, value, options):
    restorer, images = Restorer(weights, "none", CPU, **options), images_of(24, 32, count=3)
    images[1, 0, 3, 4] = value
    with pytest.raises(NotFinite, match="^second: "):
        restorer.restore(images, "first", "second", "third")


@pytest.mark.parametrize("name", ["cpuu", "meta", "cuda:x"])
def test_a_device_that_is_none_is_an_error_of_ours(name):
    with pytest.raises(distributed.DeviceError):
        distributed.device(name)
