"""Runs of recipes that differ by their seed, trained and scored by the repository's own scripts, one run a device.

    results/J@2/           the run of configs/J with seed 2: weights, images and scores, as of any job
    results/J@2/runs.log   what the scripts print, where several runs are made side by side

What is done is left alone, and the scripts go on with what was stopped, so the same runs can be asked for again after
a kill at any moment. Several commands at once share their runs: each is made by one of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import IO

import torch
import yaml

from datasets.layouts import LayoutError, find_pairs
from engine.config import ConfigError, load_config, models_dir, results_dir, to_yaml
from engine.evaluate.registry import DATA_SETS, column_names
from engine.predict.inference import checksum
from engine.train.signals import stop_requests

try:
    import fcntl
except ImportError:  # Windows: there two commands must not make the same run at once
    fcntl = None

SCRIPTS = Path(__file__).parents[1]
PREDICT = {  # data set -> script, folder of the images in results/J
    "gopro": ("predict_GoPro_test_results.py", "images"),
    "hide": ("predict_HIDE_results.py", "images_hide"),
    "rwbi": ("predict_RWBI_results.py", "images_rwbi"),
    "realblur_j": ("predict_RealBlur_J_test_results.py", "images_realj"),
}
# Keys that change how a run is computed and not what it ends with.
HARMLESS = {
    "data": ("workers", "cache", "cache_dir"),
    "model": ("scan_backend",),
    "train": ("accumulate", "checkpoint_activations", "save_every"),
}
POLL = 0.5  # seconds between two looks


class Unfinished(Exception):
    """A run that is not finished, and why."""


@dataclass(frozen=True)
class ScoredSet:
    """A data set to score on: key of registry.DATA_SETS, folder, and how many images are to be restored."""

    key: str
    folder: Path
    images: int

    @classmethod
    def find(cls, key: str, folder: Path) -> ScoredSet:
        """Raises LayoutError, in one line, where there is none."""
        if not folder.is_dir():
            raise LayoutError(f"{folder}: no such folder; unpack {DATA_SETS[key].title} there")
        try:
            return cls(key, folder, len(find_pairs(folder, "test", variant=DATA_SETS[key].variant)))
        except LayoutError as error:
            raise LayoutError(str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class Run:
    """A recipe's run with a seed; name: its --job_name, of the form JOB@NAME."""

    name: str
    seed: int
    overrides: tuple[str, ...] = ()
    niqe_model: str = "live"

    @property
    def weights(self) -> Path:
        return models_dir(self.name) / "best_XYScanNet_stage1.pth"

    def is_trained(self) -> bool:
        """Whether training has come to its end: final_ comes with it, after the last best_."""
        return (models_dir(self.name) / "final_XYScanNet_stage1.pth").is_file()

    def check(self) -> None:
        """Raises ConfigError where the recipe cannot be, or is another one than the run was begun with."""
        wanted = yaml.safe_load(to_yaml(load_config(self.name, 1, self._overrides)))
        record = results_dir(self.name) / "config_stage1.yaml"
        if not record.is_file():
            return
        begun = yaml.safe_load(record.read_text(encoding="utf-8"))
        changes = [
            f"    {section}.{key}: {begun[section][key]} then, {value} now"
            for section, values in wanted.items()
            if isinstance(values, dict)
            for key, value in values.items()
            if key not in HARMLESS.get(section, ()) and begun.get(section, {}).get(key, value) != value
        ]
        if changes:
            raise ConfigError(
                f"{record.parent} was begun with another recipe (so says {record.name}):\n"
                + "\n".join(changes)
                + "\nSet it back, or remove the folder to begin anew"
            )

    def check_data(self) -> None:
        """Raises LayoutError where there is nothing to train on."""
        try:
            find_pairs(load_config(self.name, 1, self._overrides).data.train, "train")
        except LayoutError as error:
            raise LayoutError(
                f"data.train: {error}. Unpack the data set there; --quick makes small data of its own"
            ) from error

    @property
    def _overrides(self) -> tuple[str, ...]:
        return (*self.overrides, f"train.seed={self.seed}")

    # The steps: a script and its arguments.

    def training(self) -> list[str]:
        return ["train_XYScanNet_stage1.py", "--job_name", self.name, *self._overrides]

    def prediction(self, scored_set: ScoredSet) -> list[str]:
        return [
            PREDICT[scored_set.key][0],
            "--job_name",
            self.name,
            "--weights",
            str(self.weights),
            "--input",
            str(scored_set.folder),
        ]

    def evaluation(self, scored_set: ScoredSet) -> list[str]:
        """With all metrics that the paper reports on the data set: several tables share a run."""
        truth = [] if scored_set.key == "rwbi" else ["--gt", str(scored_set.folder)]
        return [
            "evaluate.py",
            "--pred",
            str(self._images(scored_set)),
            "--dataset",
            scored_set.key,
            *truth,
            "--niqe_model",
            self.niqe_model,
        ]

    def _images(self, scored_set: ScoredSet) -> Path:
        return results_dir(self.name) / PREDICT[scored_set.key][1]

    def record(self, scored_set: ScoredSet) -> dict | None:
        """What evaluate.py has written; None unless it is finished, of these weights, and of all the images."""
        path = Path(f"{self._images(scored_set)}_scores") / "scores.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            fits = (
                record["complete"]
                and record["images"]["scored"] == scored_set.images
                and record["made_by"]["weights_sha256"] == checksum(self.weights)
            )
        except (OSError, KeyError, TypeError, ValueError):
            return None
        return record if fits else None

    def lacks_scores(self, record: dict) -> bool:
        """Whether a score has no value yet: a download may succeed when it is tried again."""
        columns = column_names(DATA_SETS[record["dataset"]].flags, "paper", self.niqe_model)
        return any("value" not in record["metrics"].get(name, {}) for name in columns)


def devices() -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is to be for each run that can be made at once; [None] without several GPUs."""
    count = torch.cuda.device_count()
    if count < 2:
        return [None]
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in listed.split(",")][:count] if listed else list(map(str, range(count)))


@dataclass(frozen=True)
class Claim:
    """A run that a device is to make; where: which it is and on what device, in words."""

    run: Run
    lock: IO
    device: str | None
    where: str


class Pool:
    """Makes runs, each scored on all the sets, one on each device at a time.

    Args:
        devices: CUDA_VISIBLE_DEVICES of each. With a single one the scripts' own output is shown.
    """

    def __init__(self, runs: Sequence[Run], scored_sets: Sequence[ScoredSet], devices: Sequence[str | None]):
        self._total, self._scored_sets, self._devices = len(runs), scored_sets, devices
        self._pending = list(enumerate(runs, start=1))
        self._unfinished: dict[str, str] = {}
        self._mutex, self._stopping, self._processes = Lock(), Event(), set()

    def make(self) -> dict[str, str]:
        """Makes the runs, or as much of them as there is time for before a signal to stop.

        Returns: why, by the name of each run that is not finished. One run's failure does not keep the others.
        """
        with stop_requests() as request, ThreadPoolExecutor(len(self._devices)) as threads:
            workers = [threads.submit(self._work, device) for device in self._devices]
            while wait(workers, timeout=POLL).not_done:
                if request.received and not self._stopping.is_set():
                    self._stop(request.received)
        for worker in workers:
            worker.result()
        return self._unfinished | {run.name: "not reached" for _, run in self._pending}

    def _stop(self, signal: str) -> None:
        print(f"{signal}: stopping; the same command goes on from here", flush=True)
        with self._mutex:
            self._stopping.set()
            for process in self._processes:
                process.terminate()  # training saves its state first

    def _work(self, device: str | None) -> None:
        """One device's share: run after run until none is left."""
        while claim := self._claim(device):
            with claim.lock:
                try:
                    self._make(claim)
                    print(f"{claim.where}: finished", flush=True)
                except Unfinished as error:
                    self._unfinished[claim.run.name] = str(error)
                    print(f"{claim.where}: {error}", flush=True)

    def _claim(self, device: str | None) -> Claim | None:
        """The next run that nobody is at work on, waited for if need be; None where there is nothing left to do."""
        waiting = False
        while not self._stopping.is_set():
            with self._mutex:
                for number, run in self._pending:
                    if (lock := lock_folder(results_dir(run.name))) is not None:
                        self._pending.remove((number, run))
                        where = f"run {number} of {self._total}, {run.name}" + (f", GPU {device}" if device else "")
                        return Claim(run, lock, device, where)
                if not self._pending:
                    return None
                if not waiting:
                    names = ", ".join(run.name for _, run in self._pending)
                    print(f"waiting for {names}: another process is at work there", flush=True)
            waiting = True
            self._stopping.wait(POLL)
        return None

    def _make(self, claim: Claim) -> None:
        """What is not done yet of a run. Raises Unfinished."""
        run = claim.run
        if not run.is_trained():
            self._execute(run.training(), claim)
            if not run.is_trained():
                raise Unfinished("training stopped before its end; the same command goes on from there")
        for scored_set in self._scored_sets:
            record = run.record(scored_set)
            if record is None:
                self._execute(run.prediction(scored_set), claim)
            if record is None or run.lacks_scores(record):
                self._execute(run.evaluation(scored_set), claim)

    def _execute(self, step: list[str], claim: Claim) -> None:
        """Runs a script to its end. Raises Unfinished where that is not a good one."""
        line = f"{claim.where}: $ python {' '.join(step)}"
        log = results_dir(claim.run.name) / "runs.log"
        with ExitStack() as stack:
            output = stack.enter_context(log.open("a", encoding="utf-8")) if len(self._devices) > 1 else None
            if output:
                print(line, file=output, flush=True)
            with self._mutex:
                if self._stopping.is_set():
                    raise Unfinished("stopped")
                print(line, flush=True)
                process = start(step, claim, output)
                self._processes.add(process)
            code = process.wait()
            with self._mutex:
                self._processes.remove(process)
        if self._stopping.is_set():
            raise Unfinished("stopped")
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise Unfinished(f"{step[0]} {how}, see {log if output else 'its messages above'}")


def start(step: list[str], claim: Claim, output: IO | None) -> subprocess.Popen:
    """A script's process. It inherits the lock, which holds as long as it lives, even where this process is killed."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / step[0]), *step[1:]],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        pass_fds=[claim.lock.fileno()] if fcntl else (),
        env=os.environ | ({"CUDA_VISIBLE_DEVICES": claim.device} if claim.device else {}),
    )


def lock_folder(folder: Path) -> IO | None:
    """The lock of a run's folder, to be closed; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / "runs.lock").open("a")
    if fcntl:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
    return handle
