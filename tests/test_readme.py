"""The READMEs: every command and Python snippet runs, and what they state agrees with the code."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

import models
from datasets.catalogue import DATA_SETS
from datasets.synthesize import synthesize_photos
from engine import demo
from engine.schema import Config
from metrics.catalogue import METRICS
from models.weights import described_state
from tests import forks, workplace
from tests.workplace import ROOT, make_pairs

# In the order in which their commands run: the later ones use results of the earlier ones.
READMES = [
    "README.md",
    "configs/README.md",
    "engine/predict/README.md",
    "metrics/README.md",
    "analysis/README.md",
    "datasets/README.md",
    "models/README.md",
    "benchmarks/README.md",
    "CONTRIBUTING.md",
]
LINKED = [*READMES, "CHANGELOG.md", "configs/xyscannet_t/README.md", "datasets/samples/README.md"]
SMALL = (
    "model.dim=8 model.num_blocks=[1,0,0] data.patch_size=16 data.batch_size=4 data.workers=0 "
    "train.validate_every=1 loss.contrast_weight=0 --device cpu"
).split()
SMALL_BENCHMARKS = {
    "network": "--dim 8 --num_blocks 1 1 1 --size 16 --baseline_backend torch",
    "vssm": "--channels 8 --size 8 --baseline_backend torch",
    "scan": "--dims 2 --levels 3 --backends torch",
    "prediction": "--dim 8 --size 40 48 --band 8 --tile 40:8",
}
TRAINED = "--weights a=results/xyscannetp_gopro/models/best_XYScanNet_stage2.pth"
SMALL_FIGURES = {
    "complexity": "--table 8 --dim 8 --num_blocks 1 1 1 --size 32",
    "receptive_field": f"--size 32 --count 1 {TRAINED}",
    "features": f"--size 32 {TRAINED}",
}
# Commands that are not run here, and why.
ELSEWHERE = {
    "python -m analysis.ablation --table 6 --quick": "tests/analysis/test_ablation.py runs it with less training",
    "python -m tests.torture --minutes 20": "tests/test_torture.py runs a few of its attacks",
    "make demo": "test_demo_runs_from_photographs_to_picture runs it with less training",
    "make test": "runs this test",
    "make quick": "is a part of `make test`",
    "make page": "tests/web/ serves it",
    "make lint": "checks the whole tree: .ci/run runs it",
    "python3 -m venv .venv && . .venv/bin/activate": "is what `make test` does",
    "pip install -e .": "is among what `make test` installs",
    "pip install -e .[metrics]": "is among what `make test` installs",
    "pip install -c constraints.txt -e .[dev]": "is what `make test` does",
    "python -m engine.predict.export --output model.onnx": "tests/engine/predict/test_export.py exports a smaller one",
    "pre-commit install": "needs a git repository to change",
}
# Weights are not downloaded here: what needs them is not measured, and the rest of the command must run.
OFFLINE = os.environ | {"https_proxy": "http://127.0.0.1:9", "XYSCANNET_CACHE": "no_weights"}


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)


def commands(readme: str) -> list[str]:
    lines = [line for block in blocks(readme, "sh") for line in block.splitlines() if line]
    return [line for line in lines if line not in ELSEWHERE]


def distinct(lines: list[str]) -> list[str]:
    """Each line where it stands for the last time, when what it reads has been made."""
    return list(dict.fromkeys(reversed(lines)))[::-1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository, with small data sets and small "released" weights where the README puts them."""
    place = tmp_path_factory.mktemp("copy") / "repository"
    left_out = ".git .venv results restored vgg19*.pth *.pyc.* GoPro HIDE RealBlur* RWBI .cache .mypy_cache"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*left_out.split()))
    for name in ("GoPro", "RealBlur_J", "RealBlur_R"):
        make_pairs(place / "datasets" / name)
    make_pairs(place / "datasets" / "HIDE", train=0)
    make_pairs(place / "datasets" / "RWBI", train=0)
    shutil.rmtree(place / "datasets" / "RWBI" / "test" / "sharp")
    (place / "datasets" / "RWBI" / "test" / "blur").rename(place / "datasets" / "RWBI" / "test" / "testA")
    for folder, size in (("samples", 256), ("samples_blurred", 96)):  # of 256 pixels, as `datasets.synthesize` needs
        for photo in (place / "datasets" / folder).glob("*.jpg"):
            cv2.imwrite(str(photo), cv2.imread(str(photo))[:size, :size])
    cv2.imwrite(str(place / "photograph.jpg"), np.full((40, 50, 3), 128, np.uint8))
    for job, kind in (("gopro", "best"), ("realj", "final"), ("realr", "final")):
        folder = place / "results" / f"xyscannetp_{job}" / "models"
        folder.mkdir(parents=True)
        torch.save(described_state(models.XYScanNet(8, (1, 1, 1))), folder / f"{kind}_XYScanNet_stage2.pth")
    return place


def made_small(line: str) -> list[str]:
    """A README command on small data with a small network, and two processes at most."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        # Ranks that need not import PyTorch again for training; for prediction, new interpreters.
        forks = "--run-path --start_method=fork".split() if "train_XYScanNet" in line else []
        words = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *forks, *words[2:]]
    if "train_XYScanNet" in line:
        val = ["data.val=datasets/GoPro/test/sharp"] if "data.val" in line else []
        return [*words, *SMALL, *val, f"train.epochs={1 + ('torchrun' in line)}"]
    for figure, small in SMALL_FIGURES.items():
        if f"analysis.{figure}" in line:
            return [*words, *small.split()]
    for name, small in SMALL_BENCHMARKS.items():
        if f"benchmarks.{name}" in line:
            if name == "scan":  # one in an interpreter of its own, with a server of forks
                words[0] = sys.executable
            return [*words, *small.split(), "--repeats", "1", "--device", "cpu"]
    if "datasets.synthesize" in line:
        return [*words, "--pairs_per_photo", "1"]
    if "predict.export" not in line and ("predict" in line or "evaluate" in line):
        return [*words, *(["--limit", "1"] if "noisy" in line else []), "--device", "cpu"]
    return words


def expected_status(line: str) -> int:
    return int("datasets.check" in line)  # three pairs are not GoPro's 1111


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_and_snippet_runs(copy):
    todo = [
        (["python", "-c", snippet], 0)
        for readme in READMES
        for snippet in blocks(readme, "python")
        if "import" in snippet
    ]
    lines = distinct([line for readme in READMES for line in commands(readme)])
    todo += [(made_small(line), expected_status(line)) for line in lines]
    assert len(todo) > 40
    workplace.run_commands(copy, todo, env=OFFLINE)
    results = copy / "results"
    for folder in (
        "xyscannetp_gopro/images",
        "xyscannetp_gopro/images_hide",
        "xyscannetp_gopro/images_rwbi",
        "xyscannetp_realj/images_realj",
        "xyscannetp_realr/images_realr",
    ):
        assert len(list((results / folder).rglob("*.png"))) == 3, folder
    assert (copy / "restored" / "photograph.png").is_file() and (copy / "restored.png").is_file()
    assert (results / "tables" / "radar.png").is_file()
    scores = json.loads((results / "xyscannetp_gopro" / "images_scores" / "scores.json").read_text())
    assert scores["images"]["scored"] == 3 and scores["metrics"]["psnr"]["value"] > 0


@pytest.mark.slow
def test_demo_runs_from_photographs_to_picture(copy, monkeypatch, capsys):
    """All of `make demo` but its length: a small pair a photograph, two steps a stage, small photographs restored."""
    monkeypatch.chdir(copy)

    def run_fork(command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, forks.popen(command).wait())

    def fewer(*arguments, **options):
        return synthesize_photos(*arguments, **{**options, "pairs_per_photo": 1, "size": 96})

    monkeypatch.setattr(demo, "SIDE", 96)
    monkeypatch.setattr(demo, "synthesize_photos", fewer)
    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run_fork))
    demo.main([*(word for word in SMALL if word not in ("--device", "cpu")), "train.iterations=2"])
    printed = capsys.readouterr().out
    last = printed.strip().splitlines()[-1]
    picture = cv2.imread(str(copy / last))
    assert last == "results/demo/comparison.png" and picture.shape[1] > 1000
    assert re.search(r"blurred \d\d\.\d\d dB -> restored \d\d\.\d\d dB: [+-]\d\.\d\d dB over 4 images", printed)


@pytest.mark.parametrize("readme", LINKED)
def test_linked_files_and_headings_exist(readme):
    text = (ROOT / readme).read_text()
    for path, heading in re.findall(r"(?:\]\(|src=\")((?!http)[^)\"#]*)#?([^)\"]*)", text):
        target = (ROOT / readme).parent / path if path else ROOT / readme
        assert target.exists(), path
        lines = target.read_text().splitlines() if heading else []
        titles = [line.lstrip("# ").lower() for line in lines if line.startswith("#")]
        headings = [re.sub(r"[^a-z0-9 -]", "", title).replace(" ", "-") for title in titles]
        assert not heading or heading in headings, f"{path}#{heading}"


def test_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?|\w+\.(?:md|py|toml|txt))`", text)
    assert len(paths) > 25
    assert not [path for path in paths if "mine" not in path and not (ROOT / path).exists()]


def test_the_readme_takes_five_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def rows(readme: str, first_heading: str) -> list[list[str]]:
    """The cells of the table whose first heading is this, without its headings."""
    text = (ROOT / readme).read_text()
    table = text.partition(f"\n| {first_heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def test_jobs_of_the_table_exist():
    names = [name for row in rows("configs/README.md", "job") for name in re.findall(r"`([a-z0-9_/]+)`", row[0])]
    assert len(names) > 8 and all((ROOT / "configs" / name).is_dir() for name in names)


def test_recipe_keys_are_those_of_the_code():
    expected = {}
    for section, cls in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(cls):
            for field in dataclasses.fields(cls):
                factory = field.default_factory
                default = field.default if factory is dataclasses.MISSING else factory()
                value = "" if default is dataclasses.MISSING else default
                expected[f"{section}.{field.name}"] = list(value) if isinstance(value, tuple) else value
    written = {
        key.strip("`"): yaml.safe_load(value) if value else "" for key, value, _ in rows("configs/README.md", "key")
    }
    assert {key: float(v) if isinstance(v, str) and v.startswith("1e") else v for key, v in written.items()} == expected


def test_parameters_are_counted():
    table = rows("models/README.md", "function")
    assert len(table) == 4
    for function, parameters, _ in table:
        with torch.device("meta"):
            network = getattr(models, function.strip("`()"))()
        assert sum(p.numel() for p in network.parameters()) == int(parameters.replace(",", ""))


def test_metrics_of_the_table_exist():
    names = {name for row in rows("metrics/README.md", "in the paper") for name in re.findall(r"`(\w+)`", row[1])}
    assert len(names) > 12 and names <= METRICS.keys()


def test_pairs_of_the_table_are_the_catalogues():
    written = {
        row[0].partition("-")[0]: [int(n) for n in re.findall(r"\d+", row[3])]
        for row in rows("datasets/README.md", "data set")
    }
    for data_set in DATA_SETS.values():
        assert written[data_set.name] == [count for count in data_set.pairs.values() if count]


def test_the_papers_figures_are_the_papers():
    paper = yaml.safe_load((ROOT / "metrics" / "paper_numbers.yaml").read_text())
    table = rows("README.md", "test set")
    assert len(table) == 5
    for name, *figures, _, _ in table:
        section = paper[name.lower().replace("-", "_")]
        expected = dict(zip(section["columns"], section["XYScanNet"], strict=True))
        for column, figure in zip(("PSNR", "SSIM", "LPIPS", "NIQE"), figures, strict=True):
            column = "ST-LPIPS" if "ST-LPIPS" in figure else column
            assert (float(figure.split()[0]) if figure else None) == expected.get(column)


def test_constraints_pin_what_is_declared():
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    declared = set(re.findall(r'"([A-Za-z][\w-]*)(?:==|>=)', (ROOT / "setup.py").read_text()))
    assert declared - pinned == {"mamba-ssm", "causal-conv1d"}  # they need a CUDA toolkit
    assert len(pinned) > 20


def test_pre_commit_and_make_lint_run_the_same_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = subprocess.run(["make", "-n", "lint", "VENV="], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {hook["entry"].split()[2] for hook in hooks} == set(re.findall(r"-m (\w+)", lint))


def test_batch_script_is_valid_shell():
    subprocess.run(["bash", "-n", str(ROOT / "configs" / "slurm_two_nodes.sbatch")], check=True)


def test_make_knows_its_commands_and_variables():
    # Variables given to the `make test` that runs this would be handed on.
    alone = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV")}
    for variables, words in ((["VENV="], "python3 -m engine.demo"), (["VENV=other", "PYTHON=py"], "py -m venv other")):
        done = subprocess.run(
            ["make", "--dry-run", "demo", *variables], cwd=ROOT, capture_output=True, text=True, check=True, env=alone
        )
        assert words in done.stdout
