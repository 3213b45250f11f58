"""Checkpoint files: written atomically; the last two training states are kept."""

import contextlib
import errno
import io
import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch

from datasets.files import atomic
from models.weights import WeightsError, read_torch_file

logger = logging.getLogger(__name__)

FORMAT = 1
NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
}


class CheckpointError(RuntimeError):
    """There are training states, but none to resume from."""


class NoRoomError(RuntimeError):
    """The disk has no room for a file. The message says how much it needs; the previous file is kept."""


def save_atomic(content: object, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one, whatever happens."""
    with atomic(path) as temporary:
        _write(content, temporary, path)


def previous(path: Path) -> Path:
    """The file that keeps the training state before the one at ``path``."""
    return path.with_name(f"previous_{path.name}")


def save_state(state: dict, path: Path, same_step: bool = False) -> None:
    """Save a training state at ``path``; the one already there becomes its ``previous``.

    Args:
        same_step: replace the state already there, and leave the previous one alone.
    """
    with atomic(path) as temporary:
        _write({"format": FORMAT, **state}, temporary, path)
        if path.exists() and not same_step:
            _keep(path)


def _keep(path: Path) -> None:
    """Keep the file at ``path`` as its ``previous``."""
    kept = path.with_name(f".{path.name}.kept")
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)  # a second name: at no moment is there no newest state
    except OSError:  # a file system without links: for a moment there is only the previous state
        os.replace(path, kept)
    os.replace(kept, previous(path))
    kept.unlink(missing_ok=True)  # replacing does nothing where a crash has left both as names of one file


def _write(content: object, temporary: Path, path: Path) -> None:
    """Write ``content`` to ``temporary`` and sync it to disk, before the file at ``path`` is moved.

    Raises:
        NoRoomError: it does not fit on the disk.
    """
    serialised = io.BytesIO()  # first into memory: torch.save hides the cause of a write that fails
    torch.save(content, serialised)
    try:
        with open(temporary, "wb") as file:
            file.write(serialised.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        kept = f"the previous {path.name} is kept" if path.exists() else "there is no previous one"
        needed = max(len(serialised.getbuffer()), path.stat().st_size if path.exists() else 0)
        raise NoRoomError(
            f"{path}: {NO_ROOM[error.errno]}: about {needed / 1e6:,.1f} MB are needed and "
            f"{free / 1e6:,.1f} MB are free; {kept}. Make room and repeat the same command"
        ) from None


def load_state(path: Path, set_aside: bool = True) -> dict | None:
    """The newest readable training state, None where there is none.

    Args:
        set_aside: rename a damaged newest state. Otherwise the next save would make it the previous one, in place of
            the good one.
    Raises:
        CheckpointError: there are files, but neither can be read or resumed from.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = read_torch_file(candidate)
        except WeightsError as error:
            problems.append(f"{candidate} is damaged ({error.reason})")
            logger.warning("%s; trying the state before it", problems[-1])
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(
                f"{candidate}: a training state of another program or version, without a position to resume from. "
                "Move it away and give it as train.start_from instead"
            )
        if problems:
            logger.warning("resuming from %s", candidate)
            if set_aside:
                with contextlib.suppress(FileNotFoundError):  # another rank was first
                    os.replace(path, path.with_name(f"damaged_{path.name}"))
        return state
    if problems:
        raise CheckpointError("; ".join(problems) + ". Move these files away to start from scratch")
    return None


def random_state() -> dict:
    """The state of every random generator of this process, as tensors and numbers that load safely."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
