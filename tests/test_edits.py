"""One idea, one edit in one file: training, validation, prediction and saved weights follow.

Each edit is made in a copy of the repository, as a researcher would make it, and the real scripts run there.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models import XYScanNet
from tests.workplace import ROOT, make_config, make_pairs, run_commands

PACKAGES = ("analysis", "configs", "datasets", "engine", "losses", "metrics", "models")

FUSION = '''

@fusion("mine")
class Mine(nn.Module):
    """The current level's features, scaled."""

    def __init__(self, dim, other_dims, options):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1, 1), 0.5))

    def forward(self, current, other1, other2):
        return self.scale * current
'''
STATE_SPACE = '''

@state_space("mine")
class Mine(nn.Module):
    """A scan of every row in front of a 1x1 convolution."""

    def __init__(self, dim, options):
        super().__init__()
        self.mamba, self.proj = S6(dim, scan_backend=options.scan_backend), Conv1x1(dim, dim)

    def forward(self, X):
        return self.proj(rearrange(self.mamba(rearrange(X, "b c h w -> b h w c")), "b h w c -> b c h w"))
'''
LOSS = '''

@term("mine")
def mine(restored, sharp):
    """Mean absolute difference."""
    return (restored - sharp).abs().mean()
'''
# A class and a line in the list.
OPTIMIZER = """

class Mine(torch.optim.SGD):
    def __init__(self, network, lr):
        super().__init__(network.parameters(), lr=lr, momentum=0.9)


OPTIMIZERS["mine"] = Mine
"""
# What the table of a new module's kind says of it, at XYScanNet-S's width.
ROWS = {"fusion": (8, r"^mine \(here\) +– +0\.00 .* 0\.14 "), "state_space": (5, r"^mine \(here\) +\d\.\d\d ")}
# name: (file, what is replaced, by what; at the end where nothing is replaced), overrides, whether prediction streams
EDITS = {
    "gate": (
        ("models/fusion.py", "return kl.sigmoid().to(current.dtype)", "return torch.full_like(kl, 0.3)"),
        [],
        False,
    ),
    "pooling": (
        ("models/vssm.py", 'reduce(F_h, "b c h w -> b h c", "mean")', 'reduce(F_h, "b c h w -> b h c", "max")'),
        [],
        False,
    ),
    "residual": (
        ("models/xyscannet.py", "return (x + self.residual(x))", "return (x + 0.5 * self.residual(x))"),
        [],
        False,
    ),
    "fusion": (("models/fusion.py", None, FUSION), ["model.fusion=mine"], True),
    "state_space": (("models/vssm.py", None, STATE_SPACE), ["model.vssm=mine"], True),
    "loss": (("losses/edge.py", None, LOSS), ["loss.weights={mine: 0.5}"], True),
    "optimizer": (("engine/train/optimizers.py", None, OPTIMIZER), ["optim.name=mine"], True),
}


@pytest.fixture
def copy(tmp_path):
    """The repository, with a data set of a few small images and a small recipe."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc.*", "samples*", ".cache"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path, model={"num_blocks": [1, 1, 1]}, train={"epochs": None, "iterations": 2, "validate_every": 1})
    return tmp_path


def run(folder: Path, *commands: str) -> list[str]:
    """What each command prints. One process runs them all, for it has to import PyTorch once."""
    printed = run_commands(folder, [(shlex.split(command), 0) for command in commands])
    return re.split(r"^\$ .*\n", printed, flags=re.MULTILINE)[1:]


def psnr(text: str, pattern: str) -> float:
    return float(re.search(pattern, text)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_one_edit_is_followed_everywhere(copy, name):
    (file, before, after), overrides, streams = EDITS[name]
    path = copy / file
    text = path.read_text()
    assert before is None or text.count(before) == 1
    path.write_text(text + after if before is None else text.replace(before, after))

    # Train, validate, and restore by the weights alone.
    train = " ".join(["python train_XYScanNet_stage1.py --job_name tiny --device cpu", *map(shlex.quote, overrides)])
    resumed = [f"{train} train.iterations=3"] if name in ("loss", "optimizer") else []
    table, row = ROWS.get(name, (None, ""))
    *_, trained, _, predicted, complexity = run(
        copy,
        train,
        *resumed,
        "cp results/tiny/models/final_XYScanNet_stage1.pth weights.pth",
        "python predict_GoPro_test_results.py --job_name elsewhere --weights weights.pth --device cpu",
        f"python -m analysis.complexity --table {table} --num_blocks 1 1 1 --size 8" if table else "true",
    )

    # The recipe is recorded.
    recorded = yaml.safe_load((copy / "results/tiny/config_stage1.yaml").read_text())
    for override in overrides:
        key, value = override.split("=")
        assert recorded[key.split(".")[0]][key.split(".")[1]] == yaml.safe_load(value)
    assert ("resuming from" in trained) == bool(resumed)
    if name == "loss":
        curves = EventAccumulator(str(copy / "results/tiny/logs/stage1")).Reload()
        assert [point.step for point in curves.Scalars("train/mine")] == [2, 3]

    # Prediction runs what was validated, streamed or not.
    assert ("without streaming" in predicted) != streams
    validated = psnr(trained, r"validation PSNR ([\d.]+) dB")
    assert psnr(predicted, r"restored +([\d.]+)") == pytest.approx(validated, abs=0.006)

    # The table of its kind has a row for it.
    assert re.search(row, complexity, re.MULTILINE), complexity


METRIC_FILE = '''"""Mean absolute error."""

import numpy as np

from .checks import check_rgb_pair


def mae(restored, sharp):
    """Mean absolute difference of two uint8 RGB images (H, W, 3) in 8-bit levels."""
    check_rgb_pair(restored, sharp)
    return np.abs(restored.astype(float) - sharp).mean()
'''
METRIC_LINE = '    Metric("mae", PAIR, "mae:mae", 4, LOWER, "mean absolute difference of uint8 RGB levels"),\n'
SET_LINE = '    DataSet("mine", "Mine", "datasets/Mine", {"test": 3}, "images_mine", "final"),\n'


def add_line(file: Path, list_name: str, line: str) -> None:
    """At the head of a list."""
    text = file.read_text()
    begin = text.index("\n", text.index(f"{list_name}: ")) + 1
    file.write_text(text[:begin] + line + text[begin:])


def mean_error(folder: Path) -> float:
    """Of the blurred images against the sharp ones."""
    pairs = zip(*(sorted((folder / kind).iterdir()) for kind in ("blur", "sharp")), strict=True)
    return float(np.mean([np.abs(cv2.imread(str(a)).astype(float) - cv2.imread(str(b))).mean() for a, b in pairs]))


@pytest.mark.slow
def test_a_new_metric_is_a_file_and_a_line(copy):
    (copy / "metrics" / "mae.py").write_text(METRIC_FILE)
    add_line(copy / "metrics" / "catalogue.py", "METRICS", METRIC_LINE)
    test = copy / "datasets/GoPro/test"
    shutil.copytree(test / "blur", copy / "results/blurred/images")
    help_text, printed, tables = run(
        copy,
        "python evaluate.py --help",
        f"python evaluate.py --pred results/blurred/images --gt {test} --dataset gopro --metrics psnr mae",
        "python -m analysis.tables",
    )
    assert "mae" in help_text
    expected = mean_error(test)
    assert re.search(rf"this run .* {expected:.4f}", printed)
    scores = json.loads((copy / "results/blurred/images_scores/scores.json").read_text())["metrics"]["mae"]
    assert scores["value"] == pytest.approx(expected) and scores["how"]["definition"] in METRIC_LINE
    assert (copy / "results/blurred/images_scores/scores.csv").read_text().startswith("name,files,check,mae,psnr\n")
    assert re.search(rf"blurred/images .* {expected:.4f}", tables)


@pytest.mark.slow
def test_a_new_test_set_is_a_line(copy):
    add_line(copy / "datasets" / "catalogue.py", "DATA_SETS", SET_LINE)
    shutil.copytree(copy / "datasets/GoPro/test", copy / "datasets/Mine/test")
    weights = copy / "results/tiny/models/final_XYScanNet_stage2.pth"
    weights.parent.mkdir(parents=True)
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), weights)
    predicted, evaluated, checked, examined, tables = run(
        copy,
        "python predict_test_results.py --dataset mine --job_name tiny --device cpu",
        "python evaluate.py --pred results/tiny/images_mine --gt datasets/Mine --dataset mine --metrics psnr",
        "python -m datasets.check datasets/Mine",
        "python -m engine.doctor",
        "python -m analysis.tables",
    )
    restored = psnr(predicted, r"restored +([\d.]+)")
    assert psnr(evaluated, r"this run +([\d.]+)") == restored
    assert "Mine, test\n  3 pairs, 3 expected" in checked
    assert re.search(r"Mine +test 3 ", examined)
    assert psnr(tables.partition("Mine, profile paper")[2], r"tiny/images_mine +([\d.]+)") == restored
