"""Files and folders on disk: written atomically and synced, walked without loops."""

import functools
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = re.sub(r"\W", "", socket.gethostname())[:30]
TEMPORARY = re.compile(rf"\..*\.{HOST}-(\d+)-[0-9a-f]{{8}}\.tmp")  # with the process that writes it


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file to write in place of ``path``, which gets its name when the block ends without an error.

    Whatever happens, ``path`` is either the old file or the whole new one, also after a power cut: the content is on
    disk before the rename, the rename when this returns. Every writer has a temporary name of its own. Makes the
    folders above ``path``; leaves nothing behind on an error. What a killed process of this machine has left behind in
    the same folder is removed.

    Raises:
        OSError: what the file system reports (full, read-only, forbidden), with ``path`` as its file name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent.resolve())
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # without a number: a text alone
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise
    finally:
        with suppress(OSError):  # the error on its way out says more
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path``, see `atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@functools.cache  # once a folder in each process
def _remove_abandoned(folder: Path) -> None:
    for entry in os.scandir(folder):
        match = TEMPORARY.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            Path(entry.path).unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Put the folder's names on disk (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk(
    folder: str | os.PathLike, skip: tuple[Path, ...] = (), unreadable: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Every regular file below ``folder``, in sorted order, links followed, each folder visited once.

    A folder that several links lead to, or that contains itself by a link, is visited under the first of its names
    alone. FIFOs, sockets and devices, hidden files and folders, and the folders in ``skip`` are passed over.

    Args:
        unreadable: what to do with the error of a folder that cannot be read, before the walk goes on without it.

    Raises:
        OSError: for a folder that cannot be read, if ``unreadable`` is not given.
    """
    seen = {Path(path).resolve() for path in skip}
    yield from _walk(Path(folder), seen, unreadable)


def _walk(folder: Path, seen: set[Path], unreadable: Callable[[OSError], None] | None) -> Iterator[Path]:
    if (resolved := folder.resolve()) in seen:
        return
    seen.add(resolved)
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        if unreadable is None:
            raise
        unreadable(error)
        return
    # Files first: then a link beside a real folder does not take its place.
    yield from (entry for entry in entries if entry.is_file())
    for entry in sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: (entry.is_symlink(), entry)):
        yield from _walk(entry, seen, unreadable)
