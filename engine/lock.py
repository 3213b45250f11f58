"""One run at a time in a folder of results: a lock that the system releases however its holder ends."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from . import distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

TAKEN = (errno.EAGAIN, errno.EACCES)


class BusyError(RuntimeError):
    """Another run is using the same results. The message names its host and process."""


@contextlib.contextmanager
def run_lock(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Lock ``folder`` for this run, all of its processes together; the main one holds the lock.

    Where the file system has no locks, a warning is logged and the run continues without.

    Args:
        file: what is locked in its place, by default ``.lock`` in the folder.
    Raises:
        BusyError: another run holds it.
    """
    with contextlib.ExitStack() as held:
        with distributed.fail_together():
            if distributed.is_main():
                file = file or folder / ".lock"
                file.parent.mkdir(parents=True, exist_ok=True)
                _lock(held.enter_context(open(file, "ab+", buffering=0)), folder)
        yield


def _lock(file, folder: Path) -> None:
    """Lock the file and write the holder's process and host into it.

    POSIX locks, because NFS supports them and forked data loader processes do not inherit them: one that outlives its
    run must not block the next run.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise BusyError(_who_holds(file, folder)) from None
        logger.warning("%s cannot be locked (%s): make sure that no other run writes to it", folder, error.strerror)
        return
    with contextlib.suppress(OSError):  # the lock also holds on a full disk
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}".encode())


def _who_holds(file, folder: Path) -> str:
    file.seek(0)
    pid, _, host = file.read(1000).decode(errors="replace").partition(" ")
    who = f"process {pid} on {host} (kill -TERM {pid} stops it there)" if host else "on some host"
    return f"{folder} is in use by another run, {who}. Wait until it ends, or write to another folder"
