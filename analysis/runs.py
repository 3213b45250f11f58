"""One run of a recipe with one seed: trained, restored and scored by the repository's own scripts, in this order.

    results/J@2/    the run of configs/J with seed 2: weights, images and scores, as of any job

A step that is done is skipped, and the scripts continue what was stopped, so that a run can be asked for again at any
time.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from datasets.catalogue import DATA_SETS, DataSet
from datasets.files import JsonError, checksum, read_json
from datasets.layouts import LayoutError, find_pairs
from engine.config import ConfigError, load_config, models_dir, results_dir, to_yaml
from engine.schema import DataConfig
from engine.train.data import TrainingData
from engine.train.signals import STOP_SIGNALS, STOPPED
from engine.typed_yaml import read_yaml
from metrics.catalogue import column_names

SCRIPTS = Path(__file__).parents[1]
# Keys that change how a run is computed, but not its result.
HARMLESS = {
    "data.workers",
    "data.cache",
    "data.cache_dir",
    "model.scan_backend",
    "train.accumulate",
    "train.checkpoint_activations",
    "train.save_every",
}


class Unfinished(Exception):
    """A run did not come to its end. The message says why."""


class Stopped(Unfinished):
    """The user asked to stop."""


@dataclass(frozen=True)
class TestSet:
    """A test set to score on.

    Attributes:
        folder: where it lies.
        count: how many blurred images are there.
    """

    data_set: DataSet
    folder: Path
    count: int

    @classmethod
    def find(cls, key: str, folder: Path | None = None) -> TestSet:
        """The test set of a key of datasets/catalogue.py; LayoutError, with a message of one line, if there is none."""
        data_set = DATA_SETS[key]
        folder = folder or Path(data_set.folder)
        if not folder.is_dir():
            raise LayoutError(f"{folder}: no such folder; unpack {data_set.title} there")
        try:
            return cls(data_set, folder, len(find_pairs(folder, "test", variant=data_set.variant)))
        except LayoutError as error:
            raise LayoutError(str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class Run:
    """A run of a recipe.

    Attributes:
        name: its ``--job_name``, JOB@NAME.
        overrides: ``section.key=value``, the seed among them.
        niqe_model: ``--niqe_model`` of evaluate.py.
    """

    name: str
    overrides: tuple[str, ...] = ()
    niqe_model: str = "live"

    @property
    def weights(self) -> Path:
        return models_dir(self.name) / "best_XYScanNet_stage1.pth"

    def is_trained(self) -> bool:
        """Training writes final_ last."""
        return (models_dir(self.name) / "final_XYScanNet_stage1.pth").is_file()

    def check(self, found: set[DataConfig]) -> None:
        """Refuse what would fail, or give scores of another recipe, before anything is trained.

        Args:
            found: the data of other runs, which are not looked for again; this run's are added.
        Raises:
            ConfigError: the recipe is invalid, or not the one that the run was started with.
            LayoutError: there are no images for training or validation.
        """
        config = load_config(self.name, 1, self.overrides)
        record = results_dir(self.name) / "config_stage1.yaml"
        if record.is_file():
            before, now = _by_key(read_yaml(record)), _by_key(yaml.safe_load(to_yaml(config)))
            changes = [
                f"    {key}: {before[key]} then, {value} now"
                for key, value in now.items()
                if key not in HARMLESS and before.get(key, value) != value
            ]
            if changes:
                raise ConfigError(
                    f"{record.parent} was started with another recipe ({record.name}):\n"
                    + "\n".join(changes)
                    + "\nUse that recipe, or remove the folder to start again"
                )
        if config.data.val is None:
            raise ConfigError("data.val: must be given: the weights with the best validation PSNR are scored")
        if not self.is_trained() and config.data not in found:
            TrainingData(config, pin_memory=False)
            found.add(config.data)

    def make(self, test_sets: Collection[TestSet]) -> None:
        """Train, then restore and score each test set; what is done already is skipped. Raises Unfinished."""
        if not self.is_trained():
            self._script("train_XYScanNet_stage1.py", "--job_name", self.name, *self.overrides)
            if not self.is_trained():
                raise Unfinished("training stopped before its end")
        for test_set in test_sets:
            record = self.record(test_set)
            data_set, folder = ("--dataset", str(test_set.data_set.key)), str(test_set.folder)
            if record is None:
                source = ("--job_name", self.name, "--weights", str(self.weights), "--input", folder)
                self._script("predict_test_results.py", *data_set, *source)
            if record is None or self._lacks_scores(record):
                truth = ("--gt", folder) if test_set.data_set.has_sharp else ()
                images = ("--pred", str(self._images(test_set)))
                self._script("evaluate.py", *images, *data_set, *truth, "--niqe_model", self.niqe_model)

    def record(self, test_set: TestSet) -> dict | None:
        """The scores that evaluate.py has written; None unless they are of these weights and of all the images."""
        try:
            record = read_json(Path(f"{self._images(test_set)}_scores") / "scores.json")
            fits = (
                record["complete"]
                and record["images"]["scored"] == test_set.count
                and record["made_by"]["weights_sha256"] == checksum(self.weights)
            )
        except (OSError, JsonError, KeyError, TypeError):
            return None
        return record if fits else None

    def _lacks_scores(self, record: dict) -> bool:
        """Whether a score has no value: a download may succeed when it is tried again."""
        columns = column_names(DATA_SETS[record["dataset"]].metrics, "paper", self.niqe_model)
        return any("value" not in record["metrics"].get(name, {}) for name in columns)

    def _images(self, test_set: TestSet) -> Path:
        return results_dir(self.name) / test_set.data_set.images

    def _script(self, script: str, *arguments: str) -> None:
        """Run a script to its end.

        On a request to stop, the script saves its state and ends: Ctrl-C reaches it from the terminal, other signals
        are passed on.

        Raises:
            Stopped: it was asked to stop.
            Unfinished: it ended with an error, such as that another process is working on this run.
        """
        print(f"$ python {' '.join([script, *arguments])}", flush=True)
        received = []
        with subprocess.Popen([sys.executable, str(SCRIPTS / script), *arguments], stdin=subprocess.DEVNULL) as process:

            def note(number: int, _: object) -> None:
                received.append(number)
                if number != signal.SIGINT:
                    process.terminate()

            before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
            try:
                code = process.wait()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        if code and (received or code == STOPPED):
            raise Stopped("stopped")
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            raise Unfinished(f"{script} {how}, see its messages above")


def _by_key(content: dict) -> dict[str, object]:
    """section.key -> value of a configuration."""
    return {
        f"{section}.{key}": value
        for section, values in content.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
