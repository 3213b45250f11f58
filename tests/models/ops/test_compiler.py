"""C at first use: built once, found again, and a clear word where it cannot be."""

import pytest

from models.ops.native import compiler
from tests import workplace

SCAN = """
import torch
from models.ops.selective_scan import resolve_backend, cpu
print(resolve_backend("auto", torch.device("cpu")), cpu.why_missing())
"""
SMALLEST = """
from models.ops.native.compiler import compiled
print(compiled("pairs.c").kl_forward)
"""


def run(tmp_path, code: str = SCAN, **environment) -> str:
    """What a program prints, in a process of its own with a cache of its own."""
    env = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **environment}
    return workplace.run(tmp_path, workplace.program(tmp_path, code), env=env).strip()


def can_compile():
    try:
        compiler._compiler()
    except compiler.BuildError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C compiler")
def test_is_built_once_and_found_again(tmp_path):
    assert run(tmp_path) == "cpu None"
    built = list((tmp_path / "xyscannet").iterdir())
    assert [path.suffix for path in built] == [".so"]
    when = built[0].stat().st_mtime_ns
    assert run(tmp_path) == "cpu None"
    assert [path.stat().st_mtime_ns for path in (tmp_path / "xyscannet").iterdir()] == [when]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C compiler")
def test_a_damaged_library_is_compiled_again(tmp_path):
    """Loading half a library ends the process with SIGBUS, which `run` would report as an error."""
    run(tmp_path, SMALLEST)
    [path] = (tmp_path / "xyscannet").iterdir()
    whole = path.read_bytes()
    one_bit = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for damaged in (whole[: len(whole) // 2], b"", one_bit):
        path.write_bytes(damaged)
        run(tmp_path, SMALLEST)
        [path] = (tmp_path / "xyscannet").iterdir()
        assert path.stat().st_size == len(whole) and path.stem.endswith(compiler._checksum(path))


def test_a_machine_without_a_compiler_does_without(tmp_path):
    assert run(tmp_path, PATH=str(tmp_path)) == "torch no C compiler (looked for $CC, cc, gcc, clang)"


def test_a_compiler_that_fails_is_named_in_one_line(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'error: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert run(tmp_path, CC=str(compiler)) == f"torch {compiler} failed: error: no such luck"
    assert list((tmp_path / "xyscannet").iterdir()) == []


@pytest.mark.skipif(not can_compile(), reason="no C compiler")
def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path):
    (tmp_path / "xyscannet").write_text("a file where the folder should be")
    assert "FuncPtr" in run(tmp_path, SMALLEST)
