"""Effective receptive fields: gradients against finite differences, shares against exhaustive search, the command."""

import itertools
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from analysis.figure import new_figure
from analysis.inputs import InputError, NamedNetwork, read_patch
from analysis.receptive_field import (
    PARTS,
    contributions,
    draw,
    fewest_pixels,
    find_images,
    main,
    measure,
    smallest_square,
)
from datasets.images import write_png
from models.registry import Options
from models.ss2d import SS2D
from models.vssm import InterVSSM, IntraVSSM
from models.xyscannet import XYScanNet

CPU = torch.device("cpu")


def tiny(seed=0, **variant):
    torch.manual_seed(seed)
    return XYScanNet(dim=8, num_blocks=(1, 1, 1), **variant).eval()


def save_noise(path, height=40, width=52, seed=0):
    write_png(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


class Around(nn.Module):
    """One module between two 1x1 convolutions, called as the network is."""

    def __init__(self, module):
        super().__init__()
        self.into, self.module, self.out = nn.Conv2d(3, 4, 1), module, nn.Conv2d(4, 3, 1)

    def residual(self, x):
        x = self.into(x)
        return self.out(x + self.module(x))


# The gradients


def test_the_field_of_a_3x3_convolution_is_its_window():
    network = nn.Conv2d(3, 3, 3, padding=1)
    network.residual = network.forward
    field = contributions(network, torch.rand(1, 3, 8, 12))
    expected = torch.zeros(8, 12)
    expected[3:6, 5:8] = network.weight.detach().abs().sum(dim=(0, 1))
    torch.testing.assert_close(field, expected)


@pytest.mark.parametrize("variant", [{"scan": "bidirectional"}, {"vssm": "ss2d", "fusion": "aff"}])
def test_gradients_equal_finite_differences_of_the_output_less_the_input(variant):
    network = tiny(**variant).double()
    patch = torch.rand(1, 3, 8, 8, dtype=torch.float64) - 0.5
    step = 1e-5
    steps = step * torch.eye(patch.numel(), dtype=torch.float64).unflatten(1, patch.shape[1:])
    with torch.no_grad():
        ahead, behind = (patch + sign * steps for sign in (1, -1))
        change = (network(ahead) - ahead)[:, :, 4, 4] - (network(behind) - behind)[:, :, 4, 4]
    expected = (change / (2 * step)).abs().sum(dim=1).view(3, 8, 8).sum(dim=0)
    torch.testing.assert_close(contributions(network, patch), expected, rtol=1e-5, atol=1e-9)


CENTRE, SIDE = 8, 16
NEAR = np.abs(np.arange(SIDE) - CENTRE) <= 1  # the 3x3 convolution in front of the scans
BEFORE = np.arange(SIDE) <= CENTRE + 1
ALL = np.ones(SIDE, bool)


@pytest.mark.parametrize(
    "module, reached",
    [
        (IntraVSSM(4), np.outer(NEAR, BEFORE) | np.outer(BEFORE, NEAR)),
        (IntraVSSM(4, Options(scan="bidirectional")), np.outer(NEAR, ALL) | np.outer(ALL, NEAR)),
        (InterVSSM(4), np.outer(BEFORE, ALL) | np.outer(ALL, BEFORE)),
        (InterVSSM(4, Options(scan="bidirectional")), np.outer(ALL, ALL)),
        (SS2D(4), np.outer(ALL, ALL)),
    ],
    ids=["intra", "intra, both ways", "inter", "inter, both ways", "ss2d"],
)
def test_a_module_reaches_the_slices_that_it_scans_and_no_other_pixel(module, reached):
    field = contributions(Around(module).double(), torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64))
    np.testing.assert_array_equal(field.numpy() > 0, reached)


def test_the_field_is_the_mean_over_the_images_middles(tmp_path):
    network, paths = tiny().requires_grad_(False), [save_noise(tmp_path / f"{k}.png", seed=k) for k in range(2)]
    (field,) = measure([NamedNetwork("a", network)], paths, 16, CPU)
    each = [contributions(network, read_patch(path, 16)).numpy() for path in paths]
    np.testing.assert_allclose(field, (each[0] + each[1]) / 2, rtol=1e-5)
    with Image.open(paths[1]) as image:
        middle = np.asarray(image)[12:28, 18:34] / 255 - 0.5
    np.testing.assert_allclose(read_patch(paths[1], 16)[0].permute(1, 2, 0), middle, atol=1e-6)


# The share of the area


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_an_exhaustive_search(part, seed):
    field = np.random.default_rng(seed).random((3, 4)) ** 4
    enough = part * field.sum()
    subsets = (np.array(kept, bool) for kept in itertools.product((0, 1), repeat=field.size))
    fewest = min(kept.sum() for kept in subsets if field.ravel()[kept].sum() >= enough)
    assert fewest_pixels(field, part) == pytest.approx(fewest / 12)
    larger = np.random.default_rng(seed).random((9, 8))
    squares = [larger[max(0, 4 - r) : 5 + r, max(0, 4 - r) : 5 + r] for r in range(6)]
    smallest = min(square.size for square in squares if square.sum() >= part * larger.sum())
    assert smallest_square(larger, part) == pytest.approx(smallest / 72)


def test_shares_of_known_fields():
    even, point = np.full((10, 10), 0.1), np.zeros((10, 10))
    point[5, 5] = 3.0
    assert [fewest_pixels(even, part) for part in PARTS] == pytest.approx(PARTS)
    assert fewest_pixels(point, 0.99) == smallest_square(point, 0.99) == 0.01
    cross = np.zeros((11, 11))
    cross[5] = cross[:, 5] = 1.0
    assert fewest_pixels(cross, 0.99) == pytest.approx(21 / 121)  # sparse, and yet it reaches the rim
    assert smallest_square(cross, 0.99) == 1


# The images


def test_of_the_images_found_evenly_spaced_ones_are_used(tmp_path):
    for k in range(6):
        for kind in ("blur", "sharp"):
            save_noise(tmp_path / "set" / "test" / kind / f"{k}.png")
    single = save_noise(tmp_path / "one.png")
    found = find_images([tmp_path / "set"], 3)
    assert [path.relative_to(tmp_path / "set" / "test").as_posix() for path in found] == [
        "blur/0.png",
        "blur/2.png",
        "blur/4.png",
    ]
    assert find_images([single, tmp_path / "set" / "test"], 50)[0] == single
    assert len(find_images([single, tmp_path / "set" / "test"], 50)) == 7


# The picture and the command


def test_all_fields_share_one_scale_and_untrained_ones_say_so():
    random = np.random.default_rng(0)
    fields = [random.random((16, 16)), 1e4 * random.random((16, 16)) ** 8]
    figure = new_figure(8, 6)
    draw(figure, [NamedNetwork("first", tiny(), untrained=True), NamedNetwork("second", tiny())], fields, 2)
    panels = [panel for panel in figure.axes if panel.get_images()]
    assert [panel.get_title().split("\n") for panel in panels] == [
        ["first", "UNTRAINED: random initialisation"],
        ["second"],
    ]
    scales = [panel.get_images()[0].get_clim() for panel in panels]
    assert scales[0] == scales[1] and scales[0][1] == pytest.approx((fields[1] / fields[1].mean()).max())
    for panel, field in zip(panels, fields, strict=True):
        np.testing.assert_allclose(panel.get_images()[0].get_array(), field / field.mean())
        assert all(f"{fewest_pixels(field, part):.2%}" in panel.get_xlabel() for part in PARTS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, and weights of two networks."""
    folder = tmp_path_factory.mktemp("made")
    for k in range(2):
        save_noise(folder / "images" / f"{k}.png", seed=k)
    for vssm in ("xyscan", "ss2d"):
        torch.save(tiny(vssm=vssm).state_dict(), folder / f"{vssm}.pth")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def arguments(folder, *more):
    return [
        f"{folder / 'images'}",
        "--device",
        "cpu",
        "--size",
        "16",
        "--output",
        f"{folder / 'new' / 'field.png'}",
        "--weights",
        f"XYScan={folder / 'xyscan.pth'}",
        f"SS2D={folder / 'ss2d.pth'}",
        *more,
    ]


def test_the_command_draws_the_fields_and_prints_their_shares(folder, capsys):
    assert main(arguments(folder)) == 0
    printed_lines = capsys.readouterr().out
    assert "XYScan: dim 8, blocks 1-1-1, unidirectional, intra and inter\n" in printed_lines
    assert "SS2D: dim 8, blocks 1-1-1, ss2d\n" in printed_lines and "UNTRAINED" not in printed_lines
    paths = [folder / "images" / f"{k}.png" for k in range(2)]
    (field,) = measure([NamedNetwork("a", tiny(vssm="ss2d").requires_grad_(False))], paths, 16, CPU)
    printed = [line.split()[3:] for line in printed_lines.splitlines() if line.startswith("SS2D  ")]
    np.testing.assert_allclose(
        np.array(printed, float),
        [[100 * share(field, part) for part in PARTS] for share in (fewest_pixels, smallest_square)],
        atol=0.4,
    )
    with Image.open(folder / "new" / "field.png") as picture:
        assert picture.format == "PNG" and picture.width > 1100 and picture.height > 700
        pixels = np.asarray(picture.convert("RGB"))
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (rim == 255).all()  # nothing is cut off
    assert [path.name for path in (folder / "new").iterdir()] == ["field.png"]


def test_without_weights_both_modules_are_shown_and_said_to_be_untrained(folder, capsys):
    path = folder / "field.png"
    assert main([f"{folder / 'images' / '0.png'}", "--size", "8", "--device", "cpu", "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("XYScan: dim 48, blocks 3-3-6, unidirectional") and "UNTRAINED" in lines[0]
    assert lines[1].startswith("SS2D: dim 48, blocks 3-3-6, ss2d; UNTRAINED")
    assert sum(line.startswith(("XYScan (untrained)", "SS2D (untrained)")) for line in lines) == 4
    assert path.is_file()


def small_image(folder):
    save_noise(folder / "images" / "1.png", height=15)
    return [], ["1.png is 52 x 15 pixels, smaller than --size 16"]


def no_images(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    return [], [f"{folder / 'images'}: no images"]


def damaged_image(folder):
    path = folder / "images" / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    return [], ["0.png: truncated"]


def missing_weights(folder):
    return ["--weights", f"a={folder / 'none.pth'}"], ["none.pth: no such weights file"]


def other_weights(folder):
    torch.save(nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    return ["--weights", f"a={folder / 'linear.pth'}"], ["linear.pth: not XYScanNet weights"]


def zero_weights(folder):
    torch.save({name: torch.zeros_like(value) for name, value in tiny().state_dict().items()}, folder / "zero.pth")
    return ["--weights", f"silent={folder / 'zero.pth'}"], ["silent: the gradients sum to 0"]


def infinite_weights(folder):
    torch.save(
        {name: torch.full_like(value, torch.inf) for name, value in tiny().state_dict().items()}, folder / "inf.pth"
    )
    return ["--weights", f"burst={folder / 'inf.pth'}"], ["inf.pth", "not finite"]


def not_a_figure(folder):
    return ["--output", f"{folder / 'new' / 'field.jpg'}"], ["field.jpg", ".png"]


@pytest.mark.parametrize(
    "case",
    [
        small_image,
        no_images,
        damaged_image,
        missing_weights,
        other_weights,
        zero_weights,
        infinite_weights,
        not_a_figure,
    ],
)
def test_bad_input_is_named_and_nothing_is_written(folder, capsys, case):
    more, expected = case(folder)
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, *more))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error and all(text in error for text in expected), error
    assert not (folder / "new").exists()


def test_where_the_memory_does_not_suffice_a_smaller_size_is_advised(folder, monkeypatch):
    network = tiny()
    monkeypatch.setattr(network, "residual", lambda _: torch.empty(2**60))
    with pytest.raises(InputError, match="large: out of memory on cpu; use a smaller --size than 16"):
        measure([NamedNetwork("large", network)], [folder / "images" / "0.png"], 16, CPU)


def test_without_matplotlib_the_message_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder))
    assert stop.value.code == 2
    assert "pip install -e .[metrics]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--size", "18"], "multiple of 8"),
        (["--size", "4"], "at least 8"),
        (["--count", "0"], "--count"),
        (["--weights", "x.pth"], "'x.pth' is not NAME=FILE"),
        (["--weights", "a=b", "a=c"], "a appears twice"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_arguments_that_make_no_sense_end_with_the_usage(folder, capsys, more, expected):
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, *more))
    assert stop.value.code == 2 and expected in capsys.readouterr().err
