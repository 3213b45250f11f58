"""Where tests.torture attacks: commands on tiny images, what they make undisturbed, and a folder to repeat them in."""

import csv
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from tests.forks import Script
from tests.workplace import make_config, make_pairs, start

PATIENCE = 120  # seconds until a command counts as hanging
MODELS = Path("results/tiny/models")
WEIGHTS = ("--weights", str(MODELS / "final_XYScanNet_stage1.pth"), "--device", "cpu")
TRAIN = ("train_XYScanNet_stage1.py", "--job_name", "tiny", "--device", "cpu")
SCORES = ("name", "psnr", "ssim_matlab_rgb", "ssim_per_channel", "blurred_psnr")
STEPS = 6
RECIPE = {
    "data": {"patch_size": 16, "batch_size": 2, "workers": 1, "cache": "memmap", "cache_dir": "cache"},
    "train": {"epochs": None, "iterations": STEPS, "validate_every": 2, "save_every": 1, "ema_decay": 0.9},
}


class Failure(Exception):
    """A bad outcome, and why."""

    def __init__(self, outcome: str, why: str):
        super().__init__(why)
        self.outcome = outcome


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its status, what it printed, and the signal it was sent."""

    status: int
    output: str
    sent: int | None = None

    def check(self) -> None:
        """Raises Failure for an end that is not clean. A launcher's report of a failed rank is no traceback."""
        if self.sent == signal.SIGKILL:
            return
        if self.status < 0 and -self.status != self.sent:
            raise Failure("traceback", f"died of {signal.Signals(-self.status).name}")
        for trace in self.output.split("Traceback (most recent call last):")[1:]:
            at_start = self.sent == signal.SIGINT and " in main\n" not in trace  # Python itself was starting
            if "ChildFailedError" not in trace and not at_start:
                raise Failure("traceback", f"a traceback, status {self.status}")
        if self.status > 0 and not self.output.strip():
            raise Failure("lost", f"status {self.status} without a word")


# What commands make.


def weights_made(work: Path) -> dict[str, str]:
    """A checksum of each released file's tensors."""
    made = {}
    for path in sorted((work / MODELS).glob("[fb]*.pth")):
        digest = hashlib.sha256()
        for name, value in torch.load(path, weights_only=True).items():
            digest.update(name.encode() + value.numpy().tobytes())
        made[path.name] = digest.hexdigest()
    return made


def images_made(folder: str, work: Path) -> dict[str, str]:
    made = {}
    for path in sorted((work / folder).rglob("*.png")):
        try:
            made[path.name] = hashlib.sha256(Image.open(path).tobytes()).hexdigest()
        except (OSError, SyntaxError) as error:
            made[path.name] = f"damaged: {error}"
    return made


def scores_made(table: str, work: Path) -> dict[str, str]:
    """Every image's scores, without the times."""
    if not (work / table).exists():
        return {}
    with open(work / table, newline="", encoding="utf-8", errors="replace") as file:
        rows = [{name: row.get(name) for name in SCORES} for row in csv.DictReader(file)]
    return {str(row["name"]): str(row) for row in rows}


def predictions_made(work: Path) -> dict[str, str]:
    return images_made("results/tiny/images", work) | {
        f"scores of {name}": row for name, row in scores_made("results/tiny/images_scores/scores.csv", work).items()
    }


@dataclass(frozen=True)
class Job:
    """A command, what reads its result, and what to remove to have it done anew."""

    arguments: tuple[str, ...]
    result: Callable[[Path], dict[str, str]]
    outputs: tuple[str, ...] = ()
    torchrun: int = 0


JOBS = {
    "train": Job(TRAIN, weights_made),
    "predict.py": Job(
        ("predict.py", "datasets/GoPro/test/blur", *WEIGHTS), functools.partial(images_made, "restored"), ("restored",)
    ),
    "predict_GoPro": Job(
        ("predict_GoPro_test_results.py", "--job_name", "tiny", *WEIGHTS),
        predictions_made,
        ("results/tiny/images", "results/tiny/images.csv", "results/tiny/images.json", "results/tiny/images_scores"),
    ),
    "evaluate.py": Job(
        (
            "evaluate.py",
            "--pred",
            "results/tiny/images",
            "--gt",
            "datasets/GoPro/test",
            "--dataset",
            "gopro",
            "--metrics",
            "psnr",
            "ssim_matlab_rgb",
            "--workers",
            "2",
            "--device",
            "cpu",
            "--output",
            "results/tiny/scores",
        ),
        functools.partial(scores_made, "results/tiny/scores/scores.csv"),
        ("results/tiny/scores",),
    ),
    "ranks": Job((*TRAIN, "data.workers=0"), weights_made, torchrun=2),
}


class Arena:
    """The folder that all attempts happen in, one after another, and copies of it to begin them with.

    The path stays the same, since caches are named after the paths of their images.
    """

    def __init__(self, folder: Path):
        self.folder, self.work = folder, folder / "work"
        self.printed: list[str] = []
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Runs every command undisturbed; keeps the folder half way, before training, and when all is done."""
        make_pairs(self.work / "datasets/GoPro", train=4, test=4)
        make_config(self.work, **RECIPE)
        compiled = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xyscannet"
        if compiled.is_dir():  # the kernels in C
            kept = shutil.ignore_patterns("tmp*")  # another process may be compiling
            shutil.copytree(compiled, self.work / "cache_home/xyscannet", ignore=kept)
        # Compiles, where that is left to do, and builds the cache, which is not to count in the time.
        process = self.start("train")
        first = "epoch 1  step "  # its state is the previous one of that which the signal has saved
        self.wait_for(lambda: first in process.log.read_text() or process.poll() is not None, PATIENCE)
        self.end(process, signal.SIGTERM).check()
        if not 0 < step_saved(self.work) < STEPS:
            raise SystemExit(f"the training did not stop half way:\n{self.printed[-1]}")
        self._keep("half")
        shutil.rmtree(self.work / "results")
        self._keep("fresh")
        for name in ("train", "predict.py", "predict_GoPro", "evaluate.py"):
            self.reference(name)
        self._keep("done")

    def reference(self, name: str) -> None:
        began = time.monotonic()
        ended = self.run(name)
        if ended.status:
            raise SystemExit(f"{name} fails undisturbed:\n{ended.output}")
        self.seconds[name], self.expected[name] = time.monotonic() - began, JOBS[name].result(self.work)

    def _keep(self, name: str) -> None:
        shutil.copytree(self.work, self.folder / name)

    def begin(self, tree: str) -> None:
        """Empties the arena and fills it with a copy of what was kept."""
        self._evict()
        self.printed.clear()
        shutil.copytree(self.folder / tree, self.work)

    def close(self) -> None:
        """Removes everything but what bad attempts left, which is in ``bad``."""
        self._evict()
        for tree in ("done", "fresh", "half"):
            shutil.rmtree(self.folder / tree, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _evict(self) -> None:
        for process in self.inhabitants():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.work, ignore_errors=True)

    def inhabitants(self) -> list[int]:
        """The processes that live in the arena."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "cwd") == str(self.work):
                    found.append(int(entry.name))
        return sorted(found)

    def start(self, name: str, *more: str, largest: int | None = None) -> Script:
        """Starts a job's command; no file it writes may grow beyond ``largest`` bytes."""
        job = JOBS[name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.work / "cache_home")}
        descriptor, log = tempfile.mkstemp(dir=self.folder)
        with open(descriptor, "w") as file:
            process = start(
                self.work, *job.arguments, *more, torchrun=job.torchrun, output=file, env=environment, nice=10,
                file_limit=largest, start_new_session=True,
            )  # fmt: skip
        process.log, process.words = Path(log), " ".join(process.args)
        return process

    def end(self, process: Script, number: int | None = None) -> Ended:
        """Sends a signal, Ctrl-C as a terminal does to all processes of the command, and waits for the end."""
        if number is not None and process.poll() is None:
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failure("lost", f"hangs: {process.words}") from None
        finally:
            output = process.log.read_text(errors="replace")
            sent = f"   sent {signal.Signals(number).name}" if number else ""
            self.printed.append(f"$ {process.words}{sent}\n{output}[status {process.poll()}]\n")
            process.log.unlink()
        return Ended(status, output, number)

    def run(self, name: str, *more: str, largest: int | None = None) -> Ended:
        return self.end(self.start(name, *more, largest=largest))

    def disturb(self, name: str, rng: random.Random, *more: str) -> Ended:
        """Runs a command and kills it at a random moment, or when it next writes a file after that."""
        process = self.start(name, *more)
        self._moment(process, rng, self.seconds[name])
        return self.end(process, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))

    def _moment(self, process: Script, rng: random.Random, length: float) -> None:
        self.wait_for(lambda: process.poll() is not None, rng.uniform(0.2, 1) * length)
        if rng.random() < 0.5:
            self.wait_for(lambda: process.poll() is not None or leftovers(self.work), 0.5 * length)

    def kill_one(self, process: Script, rng: random.Random, length: float, main: bool) -> int | None:
        """Kills one of a command's processes, the first only with ``main``; returns which."""
        self.wait_for(lambda: process.poll() is not None or len(self.inhabitants()) > 1, PATIENCE)
        self._moment(process, rng, length)
        victims = [one for one in self.inhabitants() if main or one != process.pid]
        if not victims or process.poll() is not None:
            return None
        victim = rng.choice(victims)
        self.printed.append(f"kills {victim} of {victims}, the first process is {process.pid}\n")
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        return victim

    def wait_for(self, condition: Callable[[], object], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < until:
            time.sleep(0.002)
        return bool(met)

    def finish(self, name: str, *more: str) -> str:
        """Gives the command again, undisturbed: it must go on where it was and make what it makes undisturbed."""
        saved = step_saved(self.work) if JOBS[name].result is weights_made else 0
        ended = self.run(name, *more)
        ended.check()
        if ended.status:
            raise Failure("lost", f"does not go on, status {ended.status}")
        if saved and step_resumed(ended.output) < saved:
            raise Failure("lost", f"goes on at step {step_resumed(ended.output)}, step {saved} was saved")
        self.compare(name)
        if left := leftovers(self.work):
            raise Failure("lost", f"leaves {', '.join(left)}")
        return "same"

    def compare(self, name: str, whole: bool = True) -> None:
        made, expected = JOBS[name].result(self.work), self.expected[name]
        wrong = [one for one in made if made[one] != expected.get(one)] + [one for one in expected if one not in made]
        if whole and wrong:
            raise Failure("silent", f"differs: {', '.join(wrong)}")
        if wrong := [one for one in made if made[one] != expected.get(one)]:
            raise Failure("lost", f"half-written: {', '.join(wrong)}")


def step_saved(work: Path) -> int:
    """The step of the newest training state; 0 where there is none that can be read."""
    for kind in ("last", "previous_last"):
        with suppress(Exception):  # a damaged one fails in many ways
            return torch.load(work / MODELS / f"{kind}_XYScanNet_stage1.pth", weights_only=True)["iteration"]
    return 0


def step_resumed(output: str) -> int:
    steps = re.findall(r"resuming from \S+ at step (\d+)", output)
    return int(steps[0]) if steps else 0


def leftovers(work: Path) -> list[str]:
    """Temporary files of any writer."""
    return [
        str(path.relative_to(work))
        for path in work.rglob("*")
        if re.search(r"\.(tmp|writing|kept)$|^\..+\.\d+$", path.name)
    ]
