"""Types of command-line arguments that several scripts share."""

import argparse
import os
from pathlib import Path


def named_path(text: str) -> Path:
    """A file or folder that has a name: "." becomes the folder's own, so that results beside it can be named after it.

    Raises:
        argparse.ArgumentTypeError: for an empty text, which would be the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path; write . for the current folder")
    path = Path(text)
    return Path(os.path.abspath(path)) if path.name in ("", "..") else path
