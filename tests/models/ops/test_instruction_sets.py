"""The C kernels on other processors: older ones of this kind are run, Arm's are compiled, and run in an emulator."""

import platform
import shutil
import subprocess

import pytest
import torch

from models.ops.kl_divergence import kl_divergence_ref
from models.ops.native import compiler
from models.ops.silu_gate import silu_gate_ref
from tests.workplace import ROOT, program, run

KERNELS = sorted(path.name for path in compiler.SOURCES.glob("*.c"))
STRICT = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
CROSS_FLAGS = [*compiler.BASIC, "-march=armv8-a", "-fopenmp"]
needs_cross = pytest.mark.skipif(not shutil.which(CROSS), reason=f"no {CROSS} (Debian: gcc-aarch64-linux-gnu)")

# The kernels' own tests, with libraries compiled for another instruction set. A length of 65 already crosses a chunk.
CHOSEN = "not torch and not triton and not gradcheck and not 252 and not 320 and not 1280"
RUN = f"""
import pytest
from models.ops.native import compiler
compiler.FLAG_SETS = ((*compiler.BASIC, sys.argv[1], "-fopenmp"),)
tests = ["tests/models/ops/test_%s.py" % name for name in ("convolution", "fused", "selective_scan")]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", {CHOSEN!r}, *tests]))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86-64 processor")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_older_x86_agrees_with_the_reference(march, tmp_path):
    flags = subprocess.run(["gcc", f"-march={march}", "-E", "-"], input="", text=True, capture_output=True)
    if flags.returncode or (march == "x86-64-v3" and not torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        pytest.skip(f"this compiler or processor has no {march}")
    assert " passed" in run(ROOT, program(tmp_path, RUN), f"-march={march}")


@needs_cross
@pytest.mark.parametrize("source", KERNELS)
def test_kernels_compile_for_arm_without_warnings(source, tmp_path):
    target = tmp_path / "kernel.o"
    command = [CROSS, *CROSS_FLAGS, *STRICT, "-c", str(compiler.SOURCES / source), "-o", str(target)]
    subprocess.run(command, check=True)
    assert target.stat().st_size


@needs_cross
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"no {EMULATOR} (Debian: qemu-user)")
@pytest.mark.parametrize("name, ref", [("kl", kl_divergence_ref), ("silu_gate", silu_gate_ref)])
def test_exponentials_on_arm_agree_with_the_reference(name, ref, tmp_path):
    """Through them all kernels differ between instruction sets: see kernels.h."""
    values = torch.cat([torch.linspace(-30, 30, 41), torch.tensor([-100.0, 100.0, 0.0])])
    a, b = torch.cartesian_prod(values, values).t()
    (tmp_path / "main.c").write_text(MAIN.replace("OPERATION", name))
    command = [CROSS, *CROSS_FLAGS, "-static", f"-I{compiler.SOURCES}", "main.c", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    lines = "".join(f"{x:.9g} {y:.9g}\n" for x, y in zip(a.tolist(), b.tolist(), strict=True))
    output = subprocess.check_output([EMULATOR, tmp_path / "main"], input=lines, text=True)
    found = torch.tensor([float(line) for line in output.split()])
    torch.testing.assert_close(found, ref(a.double(), b.double()).float(), rtol=2e-6, atol=2e-6)


MAIN = """
#include <stdio.h>
#include "pairs.c"
int main(void) {
    float a, b, y;
    while (scanf("%f %f", &a, &b) == 2) {
        Pair p = {.a = {&a, 1}, .b = {&b, 1}, .y = {&y, 1}, .rows = 1, .channels = 1, .threads = 1};
        OPERATION_forward(&p);
        printf("%.9g\\n", y);
    }
}
"""
