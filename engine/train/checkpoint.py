"""Files that a crash cannot spoil: written under another name, synced, renamed; the last two training states kept."""

import contextlib
import errno
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
    """Training states are there, but none can be resumed from."""


class NoRoomError(RuntimeError):
    """The disk has no room for a file. The message says how much it needs; the file that was there is kept."""


def save_atomic(content: object, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the new one, whatever happens."""
    with atomic(path) as temporary:
        _write(content, temporary, path)


def previous(path: Path) -> Path:
    """Where the training state before the one at ``path`` is kept."""
    return path.with_name(f"previous_{path.name}")


def save_state(state: dict, path: Path, same_step: bool = False) -> None:
    """Save a training state at ``path``; the one that was there becomes its ``previous``.

    same_step: it replaces a state of the same step, and the one before stays where it is.
    """
    with atomic(path) as temporary:
        _write({"format": FORMAT, **state}, temporary, path)
        if path.exists() and not same_step:
            _keep(path)


def _keep(path: Path) -> None:
    """Make the file at ``path`` its own ``previous``."""
    kept = path.with_name(f".{path.name}.kept")
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)  # a second name: at no moment is there no newest state
    except OSError:  # a file system without links: a moment without, but still with the one before
        os.replace(path, kept)
    os.replace(kept, previous(path))


def _write(content: object, temporary: Path, path: Path) -> None:
    """Write ``content`` to ``temporary``, synced to disk: what is there already may give way only then.

    Raises:
        NoRoomError: it does not fit on the disk; for the message, ``path`` is what it was to become.
    """
    try:
        with open(temporary, "wb", buffering=0) as file:
            recorder = _Recorder(file)
            try:
                torch.save(content, recorder)
            except RuntimeError as error:  # what PyTorch says of it, over the cause
                cause = recorder.error or error.__context__
                if cause is None:
                    raise
                raise cause from None
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        kept = f"the {path.name} before is kept" if path.exists() else "nothing was there before"
        needed = max(_size(content), path.stat().st_size if path.exists() else 0)
        raise NoRoomError(
            f"{path}: {NO_ROOM[error.errno]}: about {needed / 1e6:,.1f} MB are needed and "
            f"{free / 1e6:,.1f} MB are free; {kept}. Make room and give the same command again"
        ) from None


class _Recorder:
    """A file that remembers what ended a write; torch.save tells only that it failed."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < len(view):  # an unbuffered write may take a part alone
                done += self.file.write(view[done:])
        except Exception as error:  # the disk's, or that a reading process has died
            self.error = error
            raise
        return done

    def flush(self) -> None:
        self.file.flush()


def _size(content: object) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    items = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return sum(_size(item) for item in items)


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
            raise CheckpointError(
                f"{candidate}: a training state of another program or version, which holds no "
                "position to resume from. Move it away and give it as train.start_from instead"
            )
        if problems:
            logger.warning("going on from %s", candidate)
            # Out of the way: the next save would make the damaged file the previous one, in place of this good one.
            with contextlib.suppress(FileNotFoundError):  # another rank was first
                os.replace(path, path.with_name(f"damaged_{path.name}"))
        return state
    if problems:
        raise CheckpointError("; ".join(problems) + ". Move these files away to start anew")
    return None


def random_state() -> dict:
    """Every random generator of this process, as tensors and numbers that load safely."""
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
