"""A folder to run the real scripts in: small images laid out as GoPro, a small recipe, stand-in VGG19 weights."""

import contextlib
import importlib
import io
import json
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import yaml

from losses.contrast import vgg19_layers
from tests.forks import Script

ROOT = Path(__file__).parents[1]
TINY = {
    "model": {"dim": 8, "num_blocks": [0, 0, 1]},
    "data": {"train": "datasets/GoPro", "val": "datasets/GoPro", "patch_size": 32, "batch_size": 4, "workers": 0},
    "loss": {"contrast_weight": 0},
    "optim": {"lr": 1e-3},
    "train": {"epochs": 2},
}


def make_pairs(root: Path, train: int = 5, test: int = 3, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    """Smooth random images and their horizontal blur, as root/{train,test}/{blur,sharp}/*.png."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for kind in ("blur", "sharp"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            coarse = rng.integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
            sharp = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / split / "sharp" / f"{k:03d}.png"), sharp)
            cv2.imwrite(str(root / split / "blur" / f"{k:03d}.png"), cv2.blur(sharp, (7, 1)))


def make_config(folder: Path, job: str = "tiny", stage: int = 1, **sections: dict) -> None:
    """configs/JOB/config_stageN.yaml under ``folder``: TINY with changes by section."""
    content = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {**TINY, **sections}}
    path = folder / "configs" / job / f"config_stage{stage}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def make_vgg19(folder: Path) -> None:
    """models/vgg19-dcbb9e9d.pth with random weights of the right shapes, to exercise the contrast term."""
    torch.manual_seed(0)
    (folder / "models").mkdir(exist_ok=True)
    state = {f"features.{name}": value for name, value in vgg19_layers().state_dict().items()}
    torch.save(state, folder / "models" / "vgg19-dcbb9e9d.pth")


def forbid_reading(monkeypatch, name: str) -> None:
    """Make every folder called ``name`` unreadable, even for root, whom file modes do not stop."""
    scandir = os.scandir

    def forbidden(folder):
        if Path(folder).name == name:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidden)


def program(folder: Path, code: str) -> str:
    """The path of a new script of this code, which finds the repository's modules."""
    path = folder / "program.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    return str(path)


def start(folder: Path, script: str, *arguments: str, torchrun: int = 0, **options) -> Script:
    """Start a script in ``folder``, if asked for as so many ranks of torchrun; `Script` has the options."""
    launcher = [str(ROOT / "tests" / "torchrun.py"), str(torchrun)] if torchrun else []
    return Script([*launcher, str(ROOT / script), *arguments], folder, **options)


def rank_environments(count: int) -> list[dict[str, str]]:
    """What a launcher sets for each of so many processes of one run, as Slurm's does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [os.environ | {name: str(value) for name, value in rank.items()} for rank in ranks]


def run(folder: Path, script: str, *arguments: str, processes: int = 1, code: int = 0, env=None, **options) -> str:
    """Run a script in ``folder``, as several ranks if asked for, expect their exit code, return what they printed."""
    environments = [env] if processes == 1 else rank_environments(processes)
    with tempfile.TemporaryFile("w+") as output:
        started = [start(folder, script, *arguments, output=output, env=env, **options) for env in environments]
        codes = [process.wait(500) for process in started]
        output.seek(0)
        printed = output.read()
    assert codes == [code] * processes, f"{codes}\n{printed}"
    return printed


def run_commands(folder: Path, commands: list[tuple[list[str], int]], **options) -> str:
    """Run commands in one process in ``folder``, expect their exit codes, return what they printed."""
    todo = folder / "commands.json"
    todo.write_text(json.dumps(commands))
    return run(folder, "tests/run_commands.py", str(todo), **options)


def train(folder: Path, *arguments: str, stage: int = 1, code: int = 0) -> str:
    """`run` of a training script on the CPU, in this process: nothing has to be imported again."""
    printed, before, root = io.StringIO(), os.getcwd(), logging.getLogger()
    handler, level, status = logging.StreamHandler(printed), root.level, 0
    root.addHandler(handler), root.setLevel(logging.INFO), os.chdir(folder)
    argv = mock.patch.object(sys, "argv", [f"train_XYScanNet_stage{stage}.py", "--device", "cpu", *arguments])
    try:
        with argv, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            importlib.import_module(f"train_XYScanNet_stage{stage}").main()
    except SystemExit as end:
        status = end.code
    finally:
        root.removeHandler(handler), root.setLevel(level), os.chdir(before)
    assert status == code, printed.getvalue()
    return printed.getvalue()


def weights(folder: Path, job: str = "tiny", kind: str = "final", stage: int = 1) -> dict[str, torch.Tensor]:
    path = folder / "results" / job / "models" / f"{kind}_XYScanNet_stage{stage}.pth"
    return torch.load(path, weights_only=True)
