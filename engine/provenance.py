"""Provenance of a result: the versions of the code and its libraries."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).parents[1]


def git_hash() -> str | None:
    """The commit of this code, ending in -dirty where files differ from it; None outside a git repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache  # as it was imported
def network_code() -> str:
    """A checksum of everything in models/ that decides a result, edits that are not committed included."""
    return code_checksum(sorted(path for kind in ("*.py", "*.c", "*.h") for path in (ROOT / "models").rglob(kind)))


def code_checksum(files: Iterable[Path]) -> str:
    """Sixteen characters that change with the content of any file."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
