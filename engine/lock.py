"""One run at a time over a job's results: a lock that the system releases however its holder ends."""

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
    fcntl = None

logger = logging.getLogger(__name__)

TAKEN = (errno.EAGAIN, errno.EACCES)


class BusyError(RuntimeError):
    """Another run is working on the same results. The message names its host and process."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this run, all of its processes together; the main one has the lock.

    Where the file system has no locks, a warning is logged and the run goes on without.

    Raises:
        BusyError: another run holds it.
    """
    with contextlib.ExitStack() as held:
        with distributed.together():
            if distributed.is_main():
                folder.mkdir(parents=True, exist_ok=True)
                _lock(held.enter_context(open(folder / ".lock", "ab+", buffering=0)), folder)
        yield


def _lock(file, folder: Path) -> None:
    """Lock the file and write into it who has done so.

    POSIX locks, because NFS knows them and because forked reading processes do not inherit them: one that outlives its
    run must not keep the next run out.
    """
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise BusyError(_who_holds(file, folder)) from None
        logger.warning(
            "%s cannot be locked (%s): see to it that no other run has the same --job_name", folder, error.strerror
        )
        return
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}".encode())


def _who_holds(file, folder: Path) -> str:
    file.seek(0)
    pid, _, host = file.read(1000).decode(errors="replace").partition(" ")
    who = f"process {pid} on {host} (kill -TERM {pid} there stops it, its state saved)" if host else "of unknown host"
    return f"{folder} is in use by another run, {who}. Wait for its end, or give this run a --job_name of its own"
