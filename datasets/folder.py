"""Makes a folder that is there only when it is complete, by threads that do not outlive an error."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .files import sync_folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, under a temporary name beside `out`; it gets its name when the block ends without an error.

    Raises: FileExistsError where `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: already holds something; choose another folder or remove it first")
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


@contextmanager
def threads_for(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, one a core by default; after an error, or Ctrl-C, what has not begun is not begun."""
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
