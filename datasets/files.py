"""Files on disk: atomic, synced writes, JSON with errors that name the file, checksums, and a walk without cycles."""

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = re.sub(r"\W", "", socket.gethostname())[:30]
TEMPORARY = re.compile(rf"\..*\.{HOST}-(\d+)-[0-9a-f]{{8}}\.tmp")  # with the id of the process that writes it


class JsonError(ValueError):
    """A file that holds no JSON object; the message names it."""


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file.

    Raises:
        JsonError: the file holds anything else.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise JsonError(f"{path}: not a JSON object ({error})") from error
    if not isinstance(content, dict):
        raise JsonError(f"{path}: not a JSON object ({type(content).__name__})")
    return content


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file, which is renamed to ``path`` when the block ends without an error.

    ``path`` is always either the old file or the complete new one, even after a power cut: the content is synced before
    the rename, and the rename before this returns. Parent folders are created. Temporary names are unique; the file is
    removed after an error, and those that killed processes of this machine left in the same folder are removed, too.

    Raises:
        OSError: reported by the file system (full, read-only, no permission), with ``path`` as its file name.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent.resolve())
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # without errno it is only a text
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise
    finally:
        with suppress(OSError):  # must not hide the original error
            temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Write ``content`` to ``path`` atomically, text as UTF-8, see ``atomic``."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def temporary_beside(path: Path) -> Path:
    """A unique hidden name beside ``path``, by which `remove_abandoned` knows the process that writes it."""
    return path.with_name(f".{path.name[:40]}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@functools.cache  # once for each folder and process
def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in a folder."""
    for entry in os.scandir(folder):
        match = TEMPORARY.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):  # another user's
                    os.unlink(entry.path)


def _is_running(process: int) -> bool:
    """Whether a process of this machine lives; True where that cannot be known."""
    if os.name != "posix":  # on Windows, signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # no permission: it is another user's
        return True
    return True


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk (POSIX only: elsewhere folders cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk(
    folder: str | os.PathLike, skip: tuple[Path, ...] = (), unreadable: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Yield every regular file below ``folder`` in sorted order.

    Links are followed, and each folder is visited once, under the first of its names. Links that lead nowhere are
    yielded as well: whoever reads them will say so. FIFOs, sockets, devices, hidden files and hidden folders are
    skipped.

    Args:
        skip: folders to leave out.
        unreadable: called with the error of each folder that cannot be read, which is then skipped.
    Raises:
        OSError: a folder cannot be read and ``unreadable`` is not given.
    """
    seen = {Path(path).resolve() for path in skip}
    yield from _walk(Path(folder), seen, unreadable)


def _walk(folder: Path, seen: set[Path], unreadable: Callable[[OSError], None] | None) -> Iterator[Path]:
    if (resolved := folder.resolve()) in seen:
        return
    seen.add(resolved)
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        if unreadable is None:
            raise
        unreadable(error)
        return
    # Files first, and links last: a folder is then visited under its real name.
    # A link is asked for by os.path, for which one that leads nowhere, or to itself, is no error.
    yield from (
        folder / entry.name
        for entry in entries
        if (os.path.isfile(entry.path) or not os.path.exists(entry.path) if entry.is_symlink() else entry.is_file())
    )
    below = [entry for entry in entries if (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir())]
    for entry in sorted(below, key=os.DirEntry.is_symlink):
        yield from _walk(folder / entry.name, seen, unreadable)
