"""Every command of the README runs, in a copy of the repository, on small data with a small network."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.workplace import ROOT, make_pairs

SMALL = (
    "model.dim=8 model.num_blocks=[1,1,1] data.patch_size=32 data.batch_size=4 data.workers=1 "
    "train.validate_every=1 loss.contrast_weight=0 --device cpu"
).split()
SMALL_BENCHMARKS = {
    "network": "--dim 8 --num_blocks 1 1 1 --size 16 --twin_backend torch",
    "vssm": "--channels 8 --size 8 --twin_backend torch",
    "scan": "--dims 2 --levels 3 --backends torch",
    "tiling": "--dim 8 --size 40 48 --band 8 --tile 24:8",
}
SMALL_FIGURES = {"receptive_field": "--size 32 --count 1", "features": "--size 32"}
# Commands that are not run here, and why.
ELSEWHERE = {
    "python -m analysis.ablation --table 6 --quick": "tests/analysis/test_ablation.py runs it with less training",
    "make demo": "test_demo_runs_from_photographs_to_picture runs what it runs",
    "make test": "is what runs this test",
    "pip install -e .": "is how `make test` installs",
    "pip install -e .[metrics]": "is among what `make test` installs",
}
# Weights are not downloaded here: what needs them is not measured, and the rest of the command must run.
OFFLINE = os.environ | {"https_proxy": "http://127.0.0.1:9", "XYSCANNET_CACHE": "no_weights"}
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with small data sets where the README says that they lie."""
    place = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(
        ROOT,
        place,
        ignore=shutil.ignore_patterns(
            ".git",
            ".venv",
            "results",
            "restored",
            "vgg19*.pth",
            "__pycache__",
            "GoPro",
            "HIDE",
            "RealBlur*",
            "RWBI",
            ".cache",
        ),
    )
    for name in ("GoPro", "RealBlur_J", "RealBlur_R"):
        make_pairs(place / "datasets" / name)
    make_pairs(place / "datasets" / "HIDE", train=0)
    make_pairs(place / "datasets" / "RWBI", train=0)
    shutil.rmtree(place / "datasets" / "RWBI" / "test" / "sharp")
    (place / "datasets" / "RWBI" / "test" / "blur").rename(place / "datasets" / "RWBI" / "test" / "testA")
    cv2.imwrite(str(place / "photograph.jpg"), np.full((40, 50, 3), 128, np.uint8))
    return place


def made_small(line: str) -> list[str]:
    """A README command, with our interpreter, two processes at most, and a small network."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words[2:]]
    elif words[0] == "python":
        words[0] = sys.executable
    if "train_XYScanNet" in line:
        return [*words, *SMALL, f"train.epochs={1 + line.startswith('torchrun') + ('accumulate' in line)}"]
    if "predict" in line or "evaluate" in line:
        return [*words, "--device", "cpu"]
    for figure, small in SMALL_FIGURES.items():
        if f"analysis.{figure} " in line:
            return [*words, *small.split()]
    for script, small in SMALL_BENCHMARKS.items():
        if f"benchmarks/{script}.py" in line:
            return [*words, *small.split(), "--repeats", "1", "--device", "cpu"]
    return words


def expected_code(line: str) -> int:
    return 1 if "datasets.check" in line else 0  # three pairs are not GoPro's 1111, and it says so


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_runs_in_the_order_of_the_readme(copy):
    assert len(COMMANDS) > 15
    for line in COMMANDS:
        if line in ELSEWHERE:
            continue
        done = subprocess.run(made_small(line), cwd=copy, capture_output=True, text=True, timeout=120, env=OFFLINE)
        assert done.returncode == expected_code(line), f"{line}\n{done.stdout}\n{done.stderr}"
    results = copy / "results"
    for folder in (
        "xyscannetp_gopro/images",
        "xyscannetp_gopro/images_hide",
        "xyscannetp_gopro/images_rwbi",
        "xyscannetp_realj/images_realj",
        "xyscannetp_realr/images_realr",
    ):
        assert len(list((results / folder).rglob("*.png"))) == 3, folder
    assert (copy / "restored" / "photograph.png").is_file()
    assert (results / "tables" / "radar.png").is_file()
    scores = json.loads((results / "xyscannetp_gopro" / "images_scores" / "scores.json").read_text())
    assert scores["images"]["scored"] == 3 and scores["metrics"]["psnr"]["value"] > 0


@pytest.mark.slow
def test_demo_runs_from_photographs_to_picture(copy):
    """All of `make demo` but its length: two steps a stage."""
    small = [word for word in SMALL if word not in ("--device", "cpu")]
    done = subprocess.run(
        [sys.executable, "-m", "engine.demo", *small, "train.iterations=2"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    picture = cv2.imread(str(copy / last))
    assert last == "results/demo/comparison.png" and picture.shape[1] > 1000
    assert re.search(r"blurred \d\d\.\d\d dB -> restored \d\d\.\d\d dB: [+-]\d\.\d\d dB over 48 images", done.stdout)


def test_files_that_the_readme_names_are_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"(?:\]\(|src=\")((?!http)[^)\"#]+)", text):
        assert (ROOT / path).exists(), path
    for cell in re.findall(r"^\| ((?:`[a-z0-9_/]+`(?:, )?)+)…? \|", text, re.MULTILINE):
        for name in re.findall(r"`([a-z0-9_/]+)`", cell):
            assert (ROOT / "configs" / name).is_dir(), name


def test_batch_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(ROOT / "configs" / "slurm_two_nodes.sbatch")], check=True)


def test_make_knows_both_commands_and_both_variables():
    for variables, words in ((["VENV="], "python3 -m engine.demo"), (["VENV=other", "PYTHON=py"], "py -m venv other")):
        done = subprocess.run(
            ["make", "--dry-run", "demo", *variables], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert words in done.stdout
