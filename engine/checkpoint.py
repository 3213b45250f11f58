"""Files that a crash cannot spoil: written under another name, synced, renamed; the last two training states kept."""
import contextlib
import logging
import os
import random
from pathlib import Path

import numpy as np
import torch

from models.weights import WeightsError, read_torch_file

logger = logging.getLogger(__name__)

FORMAT = 1


class CheckpointError(RuntimeError):
    """Training states are there, but none can be resumed from."""


def save_atomic(content: object, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the new one, whatever happens."""
    os.replace(_write(content, path), path)
    _sync_folder(path.parent)


def previous(path: Path) -> Path:
    """Where the training state before the one at ``path`` is kept."""
    return path.with_name(f"previous_{path.name}")


def save_state(state: dict, path: Path) -> None:
    """Save a training state at ``path``; the one that was there becomes its ``previous``."""
    written = _write({"format": FORMAT, **state}, path)
    if path.exists():
        kept = path.with_name(f".{path.name}.kept")
        kept.unlink(missing_ok=True)
        try:
            os.link(path, kept)         # a second name: at no moment is there no newest state
        except OSError:                 # a file system without links: a moment without, but still with the one before
            os.replace(path, kept)
        os.replace(kept, previous(path))
    os.replace(written, path)
    _sync_folder(path.parent)


def _write(content: object, path: Path) -> Path:
    """Write ``content``, synced to disk, under a temporary name beside ``path``; return that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load_state(path: Path) -> dict | None:
    """The newest training state that can be read, None where there is none.

    Raises:
        CheckpointError: there are files, and neither can be read or resumed from.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            state = read_torch_file(candidate)
        except WeightsError as error:
            problems.append(f"{candidate} is damaged ({error.reason})")
            logger.warning("%s; looking for the state before it", problems[-1])
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{candidate}: a training state of another program or version, which holds no "
                                  "position to resume from. Move it away and give it as train.start_from instead")
        if problems:
            logger.warning("going on from %s", candidate)
            # Out of the way: the next save would make the damaged file the previous one, in place of this good one.
            with contextlib.suppress(FileNotFoundError):        # another rank was first
                os.replace(path, path.with_name(f"damaged_{path.name}"))
        return state
    if problems:
        raise CheckpointError("; ".join(problems) + ". Move these files away to start anew")
    return None


def random_state() -> dict:
    """Every random generator of this process, as tensors and numbers that load safely."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {"python": [version, list(internal), gauss],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
