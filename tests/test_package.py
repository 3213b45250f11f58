"""models/ as the package `xyscannet`: from a wheel in an empty folder, and through torch.hub."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
import torch

from engine.config import shipped_weights
from models import load_network
from tests.workplace import ROOT, run

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
USE = """
import numpy as np, torch, xyscannet

image = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
restored = xyscannet.deblur(image, device="cpu")
assert restored.shape == image.shape and restored.dtype == np.uint8 and (restored != image).any()
network = xyscannet.load("xyscannet_t")
assert not network.training and isinstance(network, xyscannet.XYScanNet)
with torch.device("meta"):
    sizes = [size() for size in (xyscannet.xyscannet_s, xyscannet.xyscannet, xyscannet.xyscannetp)]
assert [size.dim for size in sizes] == [48, 72, 144]
u = torch.rand(2, 3, 5)
y = xyscannet.selective_scan(u, u, -torch.rand(3, 4), torch.rand(2, 4, 5), torch.rand(2, 4, 5))
assert y.shape == u.shape
print(xyscannet.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the package was installed, from a wheel built of a copy of the repository."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and setuptools")
    place = tmp_path_factory.mktemp("package")
    source, target = place / "source", place / "target"
    shutil.copytree(ROOT / "models", source / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "models" / "vgg19-dcbb9e9d.pth").touch()  # a download that lies there is no part of the package
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source)]
    subprocess.run([*PIP, *wheel], check=True, timeout=240)
    (file,) = place.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--no-compile", "--target", str(target), str(file)], check=True)
    return target


@pytest.mark.slow
def test_a_wheel_holds_the_package_alone_and_works_in_an_empty_folder(installed, tmp_path):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"xyscannet"}
    files = {path.relative_to(installed / "xyscannet").as_posix() for path in (installed / "xyscannet").rglob("*.*")}
    weights = {"pretrained/xyscannet_t.pth", "pretrained/NOTICE.txt"}
    needed = {"py.typed", *weights, "ops/native/scan.c", "ops/native/kernels.h"}
    assert needed <= files and not any("vgg19" in name for name in files)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "xyscannet" / "__init__.py")


def test_torch_hub_loads_it_beside_a_programs_own_models(tmp_path):
    """Some program's package of the same name, and this repository's, both stay what they are."""
    network = load_network(ROOT / shipped_weights("xyscannet_t"))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        torch.save({"images": images, "expected": network(images)}, tmp_path / "case.pth")
    (tmp_path / "models.py").write_text("name = 'theirs'")
    code = f"""
import torch, models
case = torch.load("case.pth")
network = torch.hub.load({str(ROOT)!r}, "xyscannet_t", source="local", trust_repo=True)
assert models.name == "theirs" and not network.training
with torch.no_grad():
    assert torch.allclose(network(case["images"]), case["expected"], atol=1e-6)
small = torch.hub.load({str(ROOT)!r}, "xyscannet_t", source="local", trust_repo=True, pretrained=False)
assert small.description == network.description
assert torch.hub.load({str(ROOT)!r}, "xyscannet_s", source="local", trust_repo=True).dim == 48
"""
    (tmp_path / "program.py").write_text(code)
    run(tmp_path, str(tmp_path / "program.py"))
