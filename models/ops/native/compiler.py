"""C compiled at first use and cached, so that installing needs no compiler and machines without one still work.

The shared library is kept in ``$XDG_CACHE_HOME/xyscannet`` (``~/.cache/xyscannet``), named after a hash of its inputs
(sources, compiler, flags, processor) and its own checksum: a truncated or altered one could kill the process, so it is
compiled again instead of loaded.
"""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
BASIC = ("-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
# The first set that the compiler accepts. Clang's OpenMP differs from PyTorch's, so it runs on one thread.
FLAG_SETS = ((*BASIC, NATIVE, "-fopenmp"), (*BASIC, NATIVE), BASIC)


class BuildError(RuntimeError):
    """There is no C compiler, or it failed; the message is one line."""


@functools.cache
def compiled(source: str, *macros: str) -> ctypes.CDLL:
    """The library of the C file ``source`` in this folder, compiled with ``macros`` (``NAME=VALUE``) defined.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler, failure = _compiler(), None
    for flags in FLAG_SETS:
        arguments = [*flags, *(f"-D{macro}" for macro in macros)]
        try:
            name = f"{Path(source).stem}-{_key(compiler, source, arguments)}"
            return ctypes.CDLL(str(_find(name) or _compile(compiler, source, arguments, name)))
        except (BuildError, OSError) as error:  # OSError: a library that it needs, such as OpenMP, is missing
            logger.debug("%s with %s: %s", source, " ".join(flags), error)
            failure = error
    raise BuildError(str(failure))


@functools.cache
def compiled_or_none(source: str) -> ctypes.CDLL | None:
    """The same; None if it cannot be built."""
    try:
        return compiled(source)
    except BuildError:
        return None


def call(function: Callable[..., int], *structures: ctypes.Structure) -> None:
    """Call a C function with pointers to these structures; MemoryError if it returns nonzero, out of memory."""
    if function(*map(ctypes.byref, structures)):
        raise MemoryError(f"not enough memory for {function.__name__} in C")


def _compiler() -> list[str]:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise BuildError("no C compiler (looked for $CC, cc, gcc, clang)")


def _find(name: str) -> Path | None:
    """The undamaged library of this name in the cache, or None; damaged ones are removed."""
    for path in sorted(_cache().glob(f"{name}-*.so")):
        if path.stem == f"{name}-{_checksum(path)}":
            return path
        logger.warning("%s: damaged; compiling it again", path)
        path.unlink(missing_ok=True)
    return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: list[str], source: str, arguments: list[str], name: str) -> Path:
    """Compile and link in a temporary folder, then rename, so that other processes never see half a library.

    Not linked with OpenMP's own library: PyTorch has one loaded, and two would compete for the cores.
    """
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        built, linked = Path(folder) / "built.o", Path(folder) / "linked.so"
        for command in (
            [*compiler, *arguments, "-c", str(SOURCES / source), "-o", str(built)],
            [*compiler, "-shared", str(built), "-o", str(linked)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BuildError(f"{compiler[0]}: {error}") from error
            if done.returncode:
                reasons = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise BuildError(f"{compiler[0]} failed: {reasons[0] if reasons else done.returncode}")
        path = _cache() / f"{name}-{_checksum(linked)}.so"
        with open(linked, "rb+") as file:  # before the rename, so that a power cut leaves no truncated file
            os.fsync(file.fileno())
        os.replace(linked, path)
    return path


def _key(compiler: list[str], source: str, arguments: list[str]) -> str:
    inputs = [file.read_bytes() for file in (SOURCES / source, *sorted(SOURCES.glob("*.h")))]
    version = subprocess.run([*compiler, "--version"], capture_output=True).stdout
    inputs += [" ".join(arguments).encode(), version, _processor().encode()]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]


@functools.cache
def _processor() -> str:
    """The instruction sets of this processor: home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@functools.cache
def _cache() -> Path:
    """The folder of compiled libraries; a temporary one where the user's cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xyscannet"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # the latter of a user without a home
        temporary = tempfile.mkdtemp(prefix="xyscannet-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(temporary)
