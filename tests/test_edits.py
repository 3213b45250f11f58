"""One idea, one edit in one file: training, validation, prediction and saved weights follow.

Each edit is made in a copy of the repository, as a researcher would make it, and the real scripts run there.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workplace import ROOT, make_config, make_pairs

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
}


@pytest.fixture
def copy(tmp_path):
    """The repository, with a data set of a few small images and a small recipe."""
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "samples*", ".cache")
        )
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path, train={"epochs": None, "iterations": 2, "validate_every": 1})
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


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

    # Train and validate.
    log = run(copy, "train_XYScanNet_stage1.py", "--job_name", "tiny", "--device", "cpu", *overrides)
    validated = psnr(log, r"validation PSNR ([\d.]+) dB")

    # The weights alone rebuild the network; prediction runs it, streamed or not.
    weights = copy / "weights.pth"
    shutil.copy(copy / "results/tiny/models/final_XYScanNet_stage1.pth", weights)
    log = run(
        copy, "predict_GoPro_test_results.py", "--job_name", "elsewhere", "--weights", str(weights), "--device", "cpu"
    )
    assert ("without streaming" in log) != streams
    assert psnr(log, r"restored +([\d.]+)") == pytest.approx(validated, abs=0.006)

    # The table of its kind has a row for it.
    if name in ROWS:
        table, row = ROWS[name]
        log = run(
            copy, "-m", "analysis.complexity", "--table", str(table), "--num_blocks", "1", "1", "1", "--size", "8"
        )
        assert re.search(row, log, re.MULTILINE), log
