"""Creates output folders that appear only when complete, and thread pools that stop at the first error."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .files import sync_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``, which is renamed to ``out`` when the block ends without an error.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: exists and is not an empty folder; choose another folder or remove it first")
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
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
