"""C compiled at first use and kept, so that installing needs no compiler and a machine without one does without.

The shared library lies in ``$XDG_CACHE_HOME/xyscannet`` (``~/.cache/xyscannet``), named after a hash of all that went
into it (the sources, the compiler, its flags, and the processor) and a checksum of itself: one that was cut short or
altered is never loaded, which would end the process without a word, but compiled again.
"""

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
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
BASIC = ("-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
# The best that the compiler at hand takes. Clang's OpenMP is another one than PyTorch's: it then runs on one thread.
FLAG_SETS = ((*BASIC, NATIVE, "-fopenmp"), (*BASIC, NATIVE), BASIC)


class BuildError(RuntimeError):
    """No compiler, or one that refuses: says so in one line."""


@functools.cache
def compiled(source: str, *macros: str) -> ctypes.CDLL:
    """The library of the C file ``source`` in this folder, compiled with ``macros`` (``NAME=VALUE``) defined.

    Raises BuildError.
    """
    compiler, failure = _compiler(), None
    for flags in FLAG_SETS:
        arguments = [*flags, *(f"-D{macro}" for macro in macros)]
        name = f"{Path(source).stem}-{_key(compiler, source, arguments)}"
        try:
            return ctypes.CDLL(str(_find(name) or _compile(compiler, source, arguments, name)))
        except (BuildError, OSError) as error:  # OSError: what it needs to run, such as an OpenMP, is not here
            failure = error
    raise BuildError(str(failure))


def _compiler() -> list[str]:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise BuildError("no C compiler (looked for $CC, cc, gcc, clang)")


def _find(name: str) -> Path | None:
    """The whole library of this name in the cache, if there is one; damaged ones are removed."""
    for path in sorted(_cache().glob(f"{name}-*.so")):
        if path.stem == f"{name}-{_checksum(path)}":
            return path
        logger.warning("%s: damaged; compiling it again", path)
        path.unlink(missing_ok=True)
    return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: list[str], source: str, arguments: list[str], name: str) -> Path:
    """Compiles and links aside, then moves the library to its place: another process finds all of it or nothing.

    Linked without OpenMP's own library: PyTorch has one loaded, and a second one beside it would fight for the cores.
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
        with open(linked, "rb+") as file:  # on disk before it has its name: a power cut leaves no half of it
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
    """What a library made for this processor may not be run without: homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@functools.cache
def _cache() -> Path:
    """The folder of compiled libraries; a temporary one where the user's cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xyscannet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="xyscannet-"))
