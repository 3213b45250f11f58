"""Weights are fetched once, checked, and asked for clearly where they cannot be had; a local server is the network."""

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metrics.downloads import ALEXNET, INCEPTION, VGG16, DownloadError, Weights, cache_folder, fetch

CONTENT = b"weights" * 1000
ROOT = Path(__file__).parents[2]


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path):
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        self.server.requests.append(self.path)


@pytest.fixture
def server(tmp_path: Path):
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT)
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def weights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setenv("XYSCANNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    url = f"http://127.0.0.1:{server.server_address[1]}/net.pth"
    return Weights("net.pth", url, hashlib.sha256(CONTENT).hexdigest(), 1, "lpips_net")


def test_fetched_once(weights: Weights, server: Server, tmp_path: Path, capfd):
    path = fetch(weights)
    assert path == tmp_path / "cache" / "net.pth" and path.read_bytes() == CONTENT
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert fetch(weights) == path and len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ["net.pth"]


def test_torchvision_s_file_is_used(weights: Weights, server: Server):
    path = Path(torch.hub.get_dir()) / "checkpoints" / "net.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(weights) == path and not server.requests


def test_a_wrong_download_leaves_nothing_behind(weights: Weights):
    with pytest.raises(DownloadError, match="invalid hash value"):
        fetch(replace(weights, sha256="0" * 64))
    assert not list(cache_folder().iterdir())


def test_a_damaged_file_is_named_and_not_used(weights: Weights):
    path = fetch(weights)
    path.write_bytes(b"other")
    with pytest.raises(DownloadError, match=f"{path}: its sha256 is .*, not {weights.sha256}. Remove the file"):
        fetch(weights)


def test_offline_says_all_that_is_needed(weights: Weights, server: Server):
    offline = replace(weights, url=weights.url.replace("net.pth", "gone.pth"))
    with pytest.raises(DownloadError) as caught:
        fetch(offline)
    for words in (
        offline.file,
        offline.url,
        offline.sha256,
        str(cache_folder() / offline.file),
        "needed for lpips_net",
    ):
        assert words in str(caught.value)


def test_the_cache_lies_in_the_project_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XYSCANNET_CACHE", raising=False)
    assert cache_folder() == ROOT / "metrics" / "cache"
    assert subprocess.run(["git", "check-ignore", "-q", "metrics/cache/x"], cwd=ROOT).returncode in (0, 128)  # no git


@pytest.mark.parametrize("known", [ALEXNET, VGG16, INCEPTION], ids=lambda weights: weights.file)
def test_the_files_are_pinned(known: Weights):
    assert len(known.sha256) == 64 and known.url.startswith("https://") and known.url.endswith("/" + known.file)
    if "-" in known.file and known.file.endswith(".pth"):  # torchvision's names end with the checksum's beginning
        assert known.sha256.startswith(known.file.removesuffix(".pth").rsplit("-", 1)[1])


def test_importing_the_metrics_loads_no_optional_package_and_stlpips_never_loads_its_own():
    code = (
        "import importlib, sys\n"
        "from metrics.catalogue import METRICS\n"
        "for one in METRICS.values(): importlib.import_module('metrics.' + one.function.partition(':')[0])\n"
        "print(sorted({'lpips', 'cleanfid', 'stlpips_pytorch', 'scipy', 'torchvision'} & set(sys.modules)))\n"
        "from metrics.stlpips import STLPIPS; STLPIPS()\n"
        "print('stlpips_pytorch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
