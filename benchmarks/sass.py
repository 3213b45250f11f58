"""The machine code of the Triton kernels, and the bounds on their speed that follow from it; needs no GPU.

    python -m benchmarks.sass                       sm_80, sm_90 and sm_100, fp32 and bf16
    python -m benchmarks.sass --capability 90 --list

Uses the assembler and disassembler that come with Triton; no kernel runs. Instructions are counted per step of the
recurrence and thread (one channel of one sequence): those in a loop over SPAN steps divided by SPAN, those executed
once a chunk divided by the steps of a chunk. `issue`, `MUFU` and `bytes` are lower bounds in ms by instruction slots,
special-function units and memory, for the largest scan of XYScanNet-P at 720p (144 channels, rows), at the clock and
bandwidth of the data sheets. This is a model, not a measurement: it assumes that all latency is hidden.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.roofline import Work, scan_work
from engine.console import readable_errors
from models.ops.triton_runtime import COMPILE
from models.ops.tuning import LaunchParameters

PARAMETERS = LaunchParameters()
CHANNELS, TOKENS, STATES = 144, 720 * 1280, 16
EVERYTHING = {"HAS_D": True, "HAS_Z": True, "HAS_BIAS": True, "SOFTPLUS": True}
BYTES = {"fp32": 4, "bf16": 2}
COLUMNS = [
    *(("kernel", -9), ("GPU", -6), ("dtype", -6), ("registers", 10), ("spilled", 8), ("barriers", 9)),
    *(("instructions", 13), ("MUFU", 6), ("FP32", 6), ("loads", 6), ("stores", 7)),
    *(("issue ms", 9), ("MUFU ms", 8), ("bytes ms", 9)),
]


@dataclass(frozen=True)
class Gpu:
    """Figures of NVIDIA's data sheets."""

    name: str
    multiprocessors: int
    clock: float  # boost, Hz
    memory: float  # bytes/s
    schedulers: int = 4  # of a multiprocessor; each issues an instruction of a warp a cycle
    special: int = 16  # MUFU results of a multiprocessor a cycle


GPUS = {
    80: Gpu("A100", 108, 1.410e9, 2.039e12),
    90: Gpu("H100", 132, 1.830e9, 3.352e12),
    100: Gpu("B200", 148, 1.965e9, 8.0e12),
}


@dataclass(frozen=True)
class Compiled:
    """Resources and instructions of a compiled kernel."""

    registers: int  # of a thread
    spilled: int  # bytes
    shared: int  # bytes
    ptx: str
    per_step: dict[str, float]  # instructions by kind

    @property
    def instructions(self) -> float:
        return sum(self.per_step.values())

    def count(self, *kinds: str) -> float:
        """Instructions a step of these kinds, with all their modifiers."""
        return sum(n for name, n in self.per_step.items() if name.partition(".")[0] in kinds)


def main() -> None:
    arguments = parse_arguments()
    measure.print_row(COLUMNS, [heading for heading, _ in COLUMNS])
    for capability in arguments.capability:
        for dtype in BYTES:
            for name, compiled in (("forward", forward(capability, dtype)), ("backward", backward(capability, dtype))):
                print_row(name, capability, dtype, compiled)
                if arguments.list:
                    for kind, count in sorted(compiled.per_step.items(), key=lambda item: -item[1]):
                        print(f"    {count:8.2f}  {kind}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=GPUS, default=list(GPUS), metavar="N")
    parser.add_argument("--list", action="store_true", help="also list every kind of instruction")
    return parser.parse_args()


def print_row(name: str, capability: int, dtype: str, compiled: Compiled) -> None:
    gpu, work = GPUS[capability], scan_work(CHANNELS, TOKENS, STATES, name == "backward")
    times = [f"{seconds * 1e3:.2f}" for seconds in least_seconds(compiled, gpu, work, BYTES[dtype])]
    counts = [("MUFU",), ("FFMA", "FMUL", "FADD", "FSEL", "FSETP", "FMNMX"), ("LDG",), ("STG",)]
    cells = [name, gpu.name, dtype, str(compiled.registers), str(compiled.spilled), f"{compiled.count('BAR'):.1f}"]
    cells += [f"{compiled.instructions:.0f}", *[f"{compiled.count(*kinds):.0f}" for kinds in counts], *times]
    measure.print_row(COLUMNS, cells)


def least_seconds(compiled: Compiled, gpu: Gpu, work: Work, itemsize: int) -> tuple[float, float, float]:
    """Lower bounds by instruction slots, special functions and memory, for CHANNELS x TOKENS steps."""
    steps = CHANNELS * TOKENS
    issued = compiled.instructions * steps / 32 / (gpu.multiprocessors * gpu.schedulers * gpu.clock)
    special = compiled.count("MUFU") * steps / (gpu.multiprocessors * gpu.special * gpu.clock)
    return issued, special, work.numbers * itemsize / gpu.memory


def forward(capability: int, dtype: str, lanes: int = PARAMETERS.forward_lanes, keep: bool = False) -> Compiled:
    """The forward scan; with ``keep``, that of training."""
    from models.ops.selective_scan import triton_scan

    constants = {"N": STATES, "LANES": lanes, "CHUNK": PARAMETERS.chunk, "KEEP": keep, **EVERYTHING}
    options = {"num_warps": lanes // 32, "maxnreg": PARAMETERS.forward_registers}
    return compile_kernel(triton_scan.forward, scan_pointers(dtype), constants, capability, options, (1,))


def backward(capability: int, dtype: str) -> Compiled:
    from models.ops.selective_scan import triton_scan

    constants = {"N": STATES, "CHUNK": PARAMETERS.chunk, **EVERYTHING}
    span = triton_scan.SPAN.value
    return compile_kernel(
        triton_scan.backward, scan_pointers(dtype), constants, capability, {"num_warps": 1}, (span, span)
    )


def scan_pointers(dtype: str) -> dict[str, str]:
    return {
        **dict.fromkeys("u delta B C z y dy du ddelta dz".split(), f"*{dtype}"),
        **dict.fromkeys("A D bias kept spans dBC dA dD dbias".split(), "*fp32"),
    }


def compile_kernel(
    kernel,
    pointers: dict[str, str],
    constants: dict,
    capability: int,
    options: dict,
    steps: tuple[int, ...] = (),
    aligned: tuple[str, ...] = (),
) -> Compiled:
    """Compile a kernel for a GPU, which need not be present.

    Args:
        pointers: type of each pointer argument; the other arguments are 32-bit integers.
        aligned: integer arguments that are multiples of 16, as pointers are.
        steps: steps of the recurrence in an iteration of each innermost loop, in the order of the code.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    multiples = [name in pointers or name in aligned for name in kernel.arg_names]
    attributes = {(k,): [["tt.divisibility", 16]] for k, multiple in enumerate(multiples) if multiple}
    binary = triton.compile(
        ASTSource(kernel, types, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={**COMPILE, **options},
    )
    usage = disassemble(binary.asm["cubin"], "-res-usage")
    registers, stack, local = map(int, re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)[0])
    per_step = {}
    if steps:  # a listing takes a second
        listing = disassemble(binary.asm["cubin"], "-sass")
        per_step = instructions_per_step(listing, steps, constants.get("CHUNK", 1))
    return Compiled(registers, stack + local, binary.metadata.shared, binary.asm["ptx"], per_step)


def cuobjdump() -> Path:
    """Path of the disassembler that comes with Triton; it may be missing."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def disassemble(cubin: bytes, option: str) -> str:
    """What cuobjdump prints: ``-res-usage``, the use of resources; ``-sass``, the listing of instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([cuobjdump(), option, file.name], check=True, capture_output=True, text=True).stdout


def instructions_per_step(listing: str, steps: tuple[int, ...], chunk: int) -> dict[str, float]:
    """Instructions a step by name. A loop is the code between a backward branch and its target.

    Raises:
        ValueError: the number of innermost loops differs from that of ``steps``.
    """
    code = [
        (int(at, 16), text) for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?);", listing, re.MULTILINE)
    ]
    jumps = [(int(target[1], 16), at) for at, text in code if (target := re.search(r"BRA\S* .*?0x([0-9a-f]+)", text))]
    loops = sorted((first, last) for first, last in jumps if first < last)
    inner = [loop for loop in loops if not any(is_inside(other, loop) for other in loops)]
    if len(inner) != len(steps):
        raise ValueError(f"{len(inner)} innermost loops in the code of the kernel, expected {len(steps)}")
    weights = {loop: 1 / count for loop, count in zip(inner, steps, strict=True)}
    weights |= {loop: 1 / chunk for loop in enclosing(loops, inner)}
    total: defaultdict[str, float] = defaultdict(float)
    for at, text in code:
        around = [loop for loop in weights if loop[0] <= at <= loop[1]]
        if around:
            smallest = min(around, key=lambda loop: loop[1] - loop[0])
            total[re.sub(r"^@\S+\s+", "", text).split()[0]] += weights[smallest]
    return dict(total)


def is_inside(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop != other and other[0] <= loop[0] and loop[1] <= other[1]


def enclosing(loops: list[tuple[int, int]], inner: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The loop over chunks: the smallest that contains all innermost ones."""
    around = [loop for loop in loops if all(is_inside(other, loop) for other in inner)]
    return [min(around, key=lambda loop: loop[1] - loop[0])] if around else []


if __name__ == "__main__":
    with readable_errors():
        main()
