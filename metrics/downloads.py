"""Weights that come with no package: fetched once, with a progress bar and a checksum, into the project's cache.

The cache is metrics/cache, or the folder that the environment variable XYSCANNET_CACHE names. What torchvision has
downloaded before, under TORCH_HOME, is used where it lies.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte from the server


class DownloadError(OSError):
    """What a metric needs, weights or a package, is not there and cannot be fetched now; says what to do."""


@dataclass(frozen=True)
class Weights:
    """A file of weights: its name in the cache, where it comes from, and who needs it."""

    file: str
    url: str
    sha256: str
    megabytes: int
    needed_by: str


ALEXNET = Weights(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244,
    "lpips_alex",
)
VGG16 = Weights(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    553,
    "lpips_vgg",
)
INCEPTION = Weights(
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    96,
    "FID and KID",
)


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    return Path(os.environ.get("XYSCANNET_CACHE") or Path(__file__).parent / "cache")


def fetch(weights: Weights) -> Path:
    """The file of the weights, its checksum verified: from the cache, from torchvision's, else downloaded.

    Raises:
        DownloadError: it cannot be downloaded, or the file found is another one.
    """
    path = cache_folder() / weights.file
    for found in (path, Path(torch.hub.get_dir()) / "checkpoints" / weights.file):
        if found.is_file():
            if (checksum := sha256(found)) != weights.sha256:
                raise DownloadError(
                    f"{found}: its sha256 is {checksum}, not {weights.sha256}. Remove the file; the "
                    f"next run downloads it from {weights.url}"
                )
            return found
    _download(weights, path)
    return path


def _download(weights: Weights, path: Path) -> None:
    timeout = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch's function takes no timeout, and a network that drops packets would hold it for minutes.
        socket.setdefaulttimeout(TIMEOUT)
        # It downloads beside the file, compares the checksum, and only then moves the file to its place.
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=weights.sha256, progress=True)
    except Exception as error:  # no network, no space, a broken proxy, another file: it is unavailable now
        raise DownloadError(
            f"{weights.file} ({weights.megabytes} MB), needed for {weights.needed_by}, cannot be downloaded ({error}). "
            f"Fetch {weights.url} on another machine and put it there as {path} (sha256 {weights.sha256}). "
            "The other metrics do not need it."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
