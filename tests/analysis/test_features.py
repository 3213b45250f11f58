"""What a scan adds by direction: against single modules run by hand, linearity, the picture, the command."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from analysis import features
from analysis.features import BACKWARD, BOTH, FORWARD, Residual, by_direction, draw, find_module, main, to_map
from analysis.figure import new_figure
from analysis.inputs import NamedNetwork
from datasets.images import write_png
from models.xyscannet import XYScanNet

TITLES = (FORWARD, BACKWARD, BOTH)


def tiny(blocks=(1, 1, 1), **variant):
    """A small network in float64; all with the same weights."""
    torch.manual_seed(0)
    return XYScanNet(dim=8, num_blocks=blocks, **variant).eval().double()


def patch_of(side=16):
    return torch.rand(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5


@torch.no_grad()
def before_decoder(network, patch):
    """The features that enter decoder level 3."""
    level1 = network.encoder_level1(network.patch_embed(patch))
    return network.encoder_level3(network.down2_3(network.encoder_level2(network.down1_2(level1))))


# The measurement


@pytest.mark.parametrize("scan", ["unidirectional", "bidirectional"])
def test_the_last_of_the_maps_is_what_the_module_adds_in_its_place(scan):
    network, patch = tiny(scan=scan), patch_of()
    block = network.decoder_level3[0]
    features = before_decoder(network, patch)
    with torch.no_grad():
        intra = block.intra(block.norm1_ssm(features))
        between = features + intra
        between = between + block.ffn1(block.norm1_ffn(between))
        expected = {"intra": intra, "inter": block.inter(block.norm2_ssm(between))}
    for name, module in (("intra", block.intra), ("inter", block.inter)):
        maps = by_direction(network, module, patch)
        assert list(maps) == ([FORWARD] if scan == "unidirectional" else [FORWARD, BACKWARD, BOTH])
        torch.testing.assert_close(list(maps.values())[-1], expected[name])


def test_in_an_intra_vssm_each_direction_is_what_this_scan_adds_alone(monkeypatch):
    network, patch = tiny(scan="bidirectional"), patch_of()
    module, norm = network.decoder_level3[0].intra, network.decoder_level3[0].norm1_ssm
    maps = by_direction(network, module, patch)
    features, s6 = before_decoder(network, patch), module.mamba
    s6.bidirectional, onward = False, s6.scan
    for name, scan in ((FORWARD, onward), (BACKWARD, lambda xz: onward(xz.flip(-2)).flip(-2))):
        monkeypatch.setattr(s6, "scan", scan)
        with torch.no_grad():
            torch.testing.assert_close(maps[name], module(norm(features)))
    assert maps[BACKWARD].abs().mean() > 0.1 * maps[FORWARD].abs().mean() > 0


def test_left_to_right_is_what_the_unidirectional_network_of_these_weights_adds():
    patch, maps = patch_of(), {}
    for scan in ("unidirectional", "bidirectional"):
        network = tiny(scan=scan)
        maps[scan] = by_direction(network, network.decoder_level3[0].intra, patch)
    torch.testing.assert_close(maps["bidirectional"][FORWARD], maps["unidirectional"][FORWARD])


@pytest.mark.parametrize("module", ["intra", "inter"])
def test_directions_sum_up_and_the_network_stays_as_it_was(module):
    network, patch = tiny(scan="bidirectional"), patch_of()
    with torch.no_grad():
        before = network(patch)
        maps = by_direction(network, getattr(network.decoder_level1[0], module), patch)
        torch.testing.assert_close(maps[FORWARD] + maps[BACKWARD], maps[BOTH])
        assert (maps[BACKWARD] != 0).any()
        torch.testing.assert_close(network(patch), before, rtol=0, atol=0)
    assert not any(one._forward_pre_hooks for one in network.modules())


def test_each_level_and_block_is_the_one_asked_for():
    network = tiny(blocks=(1, 2, 1))
    named, patch = NamedNetwork("a", network), patch_of()
    assert find_module(named, 2, 2, "inter") is network.decoder_level2[1].inter
    assert find_module(named, 1, 1, "intra") is network.decoder_level1[0].intra
    for level, shape in ((1, (1, 8, 16, 16)), (2, (1, 16, 8, 8)), (3, (1, 32, 4, 4))):
        residual = by_direction(network, find_module(named, level, 1, "intra"), patch)[FORWARD]
        assert residual.shape == shape and to_map(residual).shape == shape[2:]


def test_a_map_is_the_mean_absolute_value_over_channels():
    np.testing.assert_allclose(to_map(torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.0]]]])), [[2, 1]])


# The picture and the command


def test_all_maps_share_one_scale_and_what_is_missing_is_said():
    random = np.random.default_rng(0)
    both = {name: random.random((8, 8)) * scale for name, scale in ((FORWARD, 1), (BACKWARD, 0.01), (BOTH, 3))}
    rows = [
        Residual(NamedNetwork("one way", tiny()), "IntraVSSM", {FORWARD: random.random((4, 4))}),
        Residual(NamedNetwork("both", tiny(scan="bidirectional"), untrained=True), "InterVSSM", both),
    ]
    figure = new_figure(10, 6)
    draw(figure, rows, np.zeros((16, 16, 3), np.uint8), "level 1")
    grid = np.array(figure.axes[:8]).reshape(2, 4)
    assert [panel.get_title().split("\n")[0] for panel in grid[0]] == ["blurred patch", "L→R", "R→L", "sum"]
    assert grid[0, 0].get_ylabel() == "one way\nIntraVSSM"
    assert grid[1, 0].get_ylabel() == "both\nInterVSSM\nUNTRAINED: random weights"
    assert [len(panel.get_images()) for panel in grid.flat] == [1, 1, 0, 0, 1, 1, 1, 1]
    assert all(panel.texts for panel in grid[0, 2:])
    scales = {panel.get_images()[0].get_clim() for panel in [grid[0, 1], *grid[1, 1:]]}
    assert len(scales) == 1 and scales.pop() == (0, pytest.approx(both[BOTH].max(), rel=0.05))
    for panel, values in zip(grid[1, 1:], both.values(), strict=True):
        np.testing.assert_array_equal(panel.get_images()[0].get_array(), values)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An image, weights with a recipe beside them that says bidirectional, and weights without a recipe."""
    folder = tmp_path_factory.mktemp("made")
    write_png(folder / "image.png", np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
    (folder / "two" / "models").mkdir(parents=True)
    torch.save(tiny().float().state_dict(), folder / "two" / "models" / "best_XYScanNet_stage1.pth")
    (folder / "two" / "config_stage1.yaml").write_text(yaml.safe_dump({"model": {"scan": "bidirectional"}}))
    torch.save(tiny().float().state_dict(), folder / "plain_stage1.pth")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def arguments(folder, *more):
    return [
        f"{folder / 'image.png'}",
        "--device",
        "cpu",
        "--size",
        "16",
        "--output",
        f"{folder / 'new' / 'features.png'}",
        "--weights",
        f"two={folder / 'two' / 'models' / 'best_XYScanNet_stage1.pth'}",
        f"one={folder / 'plain_stage1.pth'}",
        *more,
    ]


def test_the_command_draws_the_maps_of_each_network(folder, capsys):
    assert main(arguments(folder, "--level", "3")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "two: dim 8, blocks 1-1-1, bidirectional, intra and inter"
    assert lines[2] == "one: dim 8, blocks 1-1-1, unidirectional, intra and inter"
    assert [line.count(name) for line in (lines[1], lines[3]) for name in TITLES] == [1, 1, 1, 1, 0, 0]
    network = tiny()
    with Image.open(folder / "image.png") as image:
        middle = torch.from_numpy(np.asarray(image)[12:28, 18:34] / 255 - 0.5).permute(2, 0, 1)[None]
    expected = to_map(by_direction(network, network.decoder_level3[0].intra, middle)[FORWARD]).mean()
    assert float(lines[3].split()[-1]) == pytest.approx(expected, rel=1e-2)
    with Image.open(folder / "new" / "features.png") as picture:
        assert picture.format == "PNG" and picture.width > 1600 and picture.height > 800
        pixels = np.asarray(picture.convert("RGB"))
    assert (np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]) == 255).all()  # nothing is cut off
    assert [path.name for path in (folder / "new").iterdir()] == ["features.png"]


def test_weights_without_a_recipe_follow_that_of_the_job_they_are_named_after(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "configs" / "my" / "job").mkdir(parents=True)
    (folder / "configs" / "my" / "job" / "config_stage1.yaml").write_text("model: {scan: bidirectional}")
    monkeypatch.setattr(features, "save", lambda figure, path: None)
    assert main(arguments(folder, "--weights", "my/job=plain_stage1.pth")) == 0
    assert "my/job: dim 8, blocks 1-1-1, bidirectional" in capsys.readouterr().out


def test_without_weights_both_ways_of_scanning_are_shown_and_said_to_be_untrained(folder, capsys):
    path = folder / "features.png"
    assert main([f"{folder / 'image.png'}", "--size", "8", "--device", "cpu", "--output", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(
        line.startswith(f"{scan}: dim 48, blocks 3-3-6, {scan}") and "UNTRAINED" in line
        for line, scan in ((lines[0], "bidirectional"), (lines[2], "unidirectional"))
    )
    assert path.is_file()


def test_the_patch_begins_at_the_corner_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setattr(features, "save", lambda figure, path: None)
    image = np.asarray(Image.open(folder / "image.png"))
    write_png(folder / "cut.png", image[20:36, 30:46])
    printed = []
    for more in (["--corner", "20", "30"], []):
        source = "image.png" if more else "cut.png"
        assert main([str(folder / source), *arguments(folder, *more)[1:]]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


def no_block(folder):
    return ["--block", "2"], ["--block 2: decoder level 1 of two has 1 block"]


def block_zero(folder):
    torch.save(tiny(blocks=(1, 2, 1)).state_dict(), folder / "deep.pth")
    return (
        ["--weights", f"deep={folder / 'deep.pth'}", "--level", "2", "--block", "0"],
        ["--block 0: decoder level 2 of deep has 2 blocks"],
    )


def ss2d(folder):
    torch.save(tiny(vssm="ss2d").state_dict(), folder / "ss2d.pth")
    return ["--weights", f"flat={folder / 'ss2d.pth'}"], ["flat has SS2D modules"]


def small_image(folder):
    return ["--size", "48"], ["image.png is 52 x 40 pixels, smaller than --size 48"]


def corner_outside(folder):
    return ["--corner", "25", "0"], ["--corner 25 0", "image.png", "Y is at most 24, X at most 36"]


def missing_image(folder):
    (folder / "image.png").unlink()
    return [], ["image.png: cannot be read"]


def other_weights(folder):
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "linear.pth")
    return ["--weights", f"a={folder / 'linear.pth'}"], ["linear.pth: not XYScanNet weights"]


def infinite_weights(folder):
    torch.save(
        {name: torch.full_like(value, torch.inf) for name, value in tiny().state_dict().items()}, folder / "inf.pth"
    )
    return ["--weights", f"burst={folder / 'inf.pth'}"], ["inf.pth", "not finite"]


def bad_recipe(folder):
    (folder / "two" / "config_stage1.yaml").write_text("model: {scan: sideways}")
    return [], ["config_stage1.yaml", "sideways"]


def not_a_figure(folder):
    return ["--output", f"{folder / 'new' / 'features.jpg'}"], ["features.jpg", ".png"]


@pytest.mark.parametrize(
    "case",
    [
        no_block,
        block_zero,
        ss2d,
        small_image,
        corner_outside,
        missing_image,
        other_weights,
        infinite_weights,
        bad_recipe,
        not_a_figure,
    ],
)
def test_bad_input_is_named_and_nothing_is_written(folder, capsys, case):
    more, expected = case(folder)
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, *more))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(text in error for text in expected), error
    assert not (folder / "new").exists()
