"""One report on a machine: GPU tests, speed, memory and precision, the most important first.

    python -m benchmarks.report --minutes 9 --output report
    python -m benchmarks.report --minutes 4 --output report --device cpu --tiny      dry run with the smallest sizes
    python -m benchmarks.report --readme report/report.json                          into benchmarks/README.md

Each section runs in its own process with a time limit, and the report is rewritten after each: it is valid at any time.
A failure is recorded with its output and does not stop the other sections. Nothing is downloaded, and a copy of the
repository is enough.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from datasets.files import write_atomic
from engine import distributed, provenance
from engine.console import readable_errors

ROOT = Path(__file__).parents[1]
CASES = "tests/models/ops/triton_cases.py"
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
OUTPUT_CHARACTERS = 20_000  # kept of a section: of longer ones the beginning and the end
SHORTEST = 10  # seconds: no section is started with less time left


@dataclass(frozen=True)
class Section:
    """A command of the report."""

    title: str
    command: tuple[str, ...]  # arguments of Python
    limit: float  # seconds
    environment: tuple[tuple[str, str], ...] = ()
    on_device: bool = False  # takes the flag --device


@dataclass
class Result:
    """The outcome of a section."""

    title: str
    command: str
    status: str  # "passed", "failed", "stopped" at its time limit, or "not reached"
    seconds: float
    output: str


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.readme:
        update_readme(arguments.readme, README)
        return 0
    device = distributed.device(arguments.device)
    sections = tiny_sections() if arguments.tiny else gpu_sections() if device.type == "cuda" else cpu_sections()
    ends = time.monotonic() + 60 * arguments.minutes
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {"machine": describe_machine(device), "minutes": arguments.minutes, "sections": []}
    for section in tqdm(sections, desc="report", unit="section", disable=None):
        left = ends - time.monotonic()
        if left < SHORTEST:
            result = Result(section.title, shown(section), "not reached", 0.0, "")
        else:
            result = run(section, min(section.limit, left), device)
        report["sections"].append(asdict(result))
        write_report(report, arguments.output)
        tqdm.write(f"{result.status:<8} {result.seconds:6.0f} s  {result.title}")
    print(f"report: {arguments.output / 'report.md'} and report.json")
    return int(any(section["status"] == "failed" for section in report["sections"]))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9, help="time for the whole report (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("report"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to check that every section runs")
    parser.add_argument(
        "--readme", type=Path, metavar="JSON", help="insert this report into benchmarks/README.md, and do nothing else"
    )
    return parser.parse_args(argv)


def gpu_sections() -> list[Section]:
    """For a CUDA device: correctness, then the main figures, then profiles and other sizes."""
    others = "-m pytest -q -ra -p no:cacheprovider -m gpu --deselect"
    others += " tests/models/ops/test_triton.py::test_cases_on_a_gpu tests"
    s, p = "--dim 48", "--dim 144"
    return [
        kernel_cases("Triton kernels against the reference", CASES, "0"),
        Section("Other tests that need a GPU", tuple(others.split()), 210),
        benchmark("Scan, fp32", "scan --sizes 720p 252 --dims 144 --levels 1 3 --repeats 5", 90),
        benchmark("Scan, bf16", "scan --sizes 720p 252 --dims 144 --levels 1 3 --repeats 5 --precision bf16", 60),
        benchmark("XYScanNet-S, 720p", f"network --case 720p {s} --repeats 5", 90),
        benchmark("XYScanNet-P, 720p", f"network --case 720p {p} --repeats 5", 120),
        benchmark(
            "XYScanNet-P, training, one GPU's share of the released recipe",
            f"network --case train252x2 train320x1 {p} --repeats 5",
            150,
        ),
        benchmark("bf16 beside fp32 on real images", "prediction --precision fp32 bf16 --band --tile", 60),
        benchmark("Costliest operations, inference", f"profiler --case 720p {p}", 60),
        benchmark("Costliest operations, training", f"profiler --case train252x2 {p}", 60),
        benchmark("Launch parameters of the Triton kernels", "tuning", 180),
        benchmark("XYScanNet-S, other sizes", f"network --case 256 1080p train252x16 {s} --repeats 3", 120),
        benchmark("XYScanNet-P, other sizes", f"network --case 256 1080p train252x16 train320x8 {p} --repeats 3", 240),
        benchmark("One VSSM, level 1 of XYScanNet-P at 720p", "vssm --channels 144 --size 720 1280", 90),
        benchmark("Streamed and tiled images", "prediction --dim 144 --images 1", 90),
    ]


def cpu_sections() -> list[Section]:
    """For a CPU: the scans in Triton's interpreter, and the figures of benchmarks/README.md."""
    return [
        kernel_cases("Triton kernels through the interpreter", CASES, "1"),
        Section("What the Triton kernels compile to", ("-m", "benchmarks.sass"), 120),  # these two need no device
        Section("Traffic on a GPU, by shapes alone", ("-m", "benchmarks.traffic"), 120),
        benchmark("Scan, fp32", "scan --repeats 3", 300),
        benchmark("XYScanNet-S", "network --baseline_backend reference torch", 600),
        benchmark("bf16 beside fp32 on real images", "prediction --precision fp32 bf16 --band --tile", 300),
        benchmark("Costliest operations, inference", "profiler --case 256 --dim 48", 60),
        benchmark("Costliest operations, training", "profiler --case train128x4 --dim 48", 120),
        benchmark("One VSSM", "vssm", 300),
        benchmark("Streamed and tiled images", "prediction --dim 48 --images 1", 300),
    ]


def tiny_sections() -> list[Section]:
    """Every script once, at sizes that take seconds."""
    small = "--dim 8 --num_blocks 1 1 1 --size 16 --repeats 1"
    return [
        kernel_cases("Triton kernels through the interpreter", f"{CASES}::test_without_softplus", "1"),
        benchmark("Scan", "scan --sizes 252 --dims 2 --levels 3 --repeats 1 --backends torch", 60),
        benchmark("Network", f"network {small} --backend torch --baseline_backend torch", 60),
        benchmark(
            "bf16 beside fp32 on real images",
            "prediction --precision fp32 bf16 --band --tile --images 1 --size 64 64",
            60,
        ),
        benchmark("Costliest operations", "profiler --case 256 --dim 8 --num_blocks 1 1 1", 60),
        benchmark("One VSSM", "vssm --channels 8 --size 8 --repeats 1 --backend torch --baseline_backend torch", 60),
    ]


def benchmark(title: str, line: str, limit: float) -> Section:
    name, *arguments = line.split()
    return Section(title, ("-m", f"benchmarks.{name}", *arguments), limit, on_device=True)


def kernel_cases(title: str, tests: str, interpret: str) -> Section:
    """By several processes where pytest-xdist is there: on a GPU nearly all of the time goes into compiling."""
    several = ("-n", "8") if interpret == "0" and importlib.util.find_spec("xdist") else ()
    command = ("-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", *several, "-m", "gpu or not gpu", tests)
    return Section(title, command, 240, (("TRITON_INTERPRET", interpret),))


def run(section: Section, limit: float, device: torch.device) -> Result:
    """Run a section for at most ``limit`` seconds, then kill its process group."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *section.command, *(["--device", str(device)] if section.on_device else [])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(section.environment)},
    )
    try:
        output, _ = process.communicate(timeout=limit)
        status = "passed" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = "stopped"
    return Result(section.title, shown(section), status, time.monotonic() - started, shorten(output))


def shown(section: Section) -> str:
    """The command as a user would type it."""
    return " ".join([*(f"{key}={value}" for key, value in section.environment), "python", *section.command])


def shorten(text: str) -> str:
    """Remove intermediate frames of progress bars, and cut the text to OUTPUT_CHARACTERS."""
    text = "\n".join(line.rpartition("\r")[2].rstrip() for line in text.strip().split("\n"))
    half = OUTPUT_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n[…]\n{text[-half:]}"


def describe_machine(device: torch.device) -> dict[str, object]:
    """The device, its clocks and memory, and the versions of the software."""
    facts: dict[str, object] = {
        "device": distributed.describe(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "git": provenance.git_hash(),
        "date": time.strftime("%Y-%m-%d"),
        **provenance.versions(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "nvidia-smi": nvidia_smi(),
        }
    return facts


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def nvidia_smi() -> str:
    """Driver, current and maximum clocks, power limit; empty if the command is missing."""
    if not shutil.which("nvidia-smi"):
        return ""
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True)
    return done.stdout.strip()


def write_report(report: dict, folder: Path) -> None:
    write_atomic(folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_atomic(folder / "report.md", "# Report\n\n" + as_markdown(report))


def as_markdown(report: dict) -> str:
    machine = report["machine"]
    lines = [f"Measured on {machine['device']} ({machine['date']}, commit {machine['git']}).", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items() if value and "\n" not in str(value)]
    for section in report["sections"]:
        took = f", {section['seconds']:.0f} s" if section["seconds"] else ""
        lines += ["", f"## {section['title']}", "", f"`{section['command']}` ({section['status']}{took})"]
        if section["output"]:
            lines += ["", "```", section["output"], "```"]
    return "\n".join(lines) + "\n"


def update_readme(report: Path, readme: Path) -> None:
    """Insert a report between the two marks in the README.

    Raises:
        ValueError: the file is not a report, or the README lacks the marks.
    """
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        text = re.sub(r"^## ", "### ", as_markdown(content), flags=re.MULTILINE)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{report}: not a report of this command ({type(error).__name__}: {error})") from error
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: the lines {BEGIN} and {END} are missing")
    write_atomic(readme, f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    with readable_errors():
        sys.exit(main())
