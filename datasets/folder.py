"""Creates output folders that appear only when complete, and thread pools that stop at the first error."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .files import remove_abandoned, sync_folder, temporary_beside


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``, which is renamed to ``out`` when the block ends without an error.

    Folders that killed processes of this machine left there are removed. Links are followed: the temporary folder is on
    the same disk as the result.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder, or cannot be replaced, such as a mounted one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: exists and is not an empty folder; choose another folder or remove it first")
    out = out.resolve()
    try:
        if out.exists():
            if out == Path.cwd():
                raise OSError("it is the current one")
            out.rmdir()  # before the work, not after it
    except OSError as error:
        reason = error.strerror or error
        raise FileExistsError(f"{out}: this folder cannot be replaced ({reason}); choose a new one in it") from error
    partial = temporary_beside(out)
    try:
        partial.mkdir(parents=True)
        remove_abandoned(out.parent)
        yield partial
        os.replace(partial, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def thread_pool(count: int | None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads, by default one per core.

    After an error or Ctrl-C, calls that have started are finished and the others cancelled.
    """
    pool = ThreadPoolExecutor(count or cores())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
