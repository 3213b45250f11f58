"""What the machine and the files do to a training: nothing is lost, and there is one line for it."""

import contextlib
import logging
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from engine.config import load_config
from engine.memory import OutOfMemory
from engine.train import trainer
from engine.train.failures import WorkerError, explain_failures
from engine.train.logger import RunLogger
from engine.train.nan_check import NonFiniteError
from engine.train.run import TrainingRun
from engine.train.signals import STOPPED
from engine.train.trainer import Trainer
from engine.train.validation import validate
from losses import DeblurLoss
from tests import workplace
from tests.workplace import make_config, make_pairs, start, weights

SCRIPT = "train_XYScanNet_stage1.py"
LAST = Path("results/tiny/models/last_XYScanNet_stage1.pth")
VALIDATED_TWICE = ("train.epochs=2", "train.validate_every=1")
ENDLESS = ("train.epochs=50000", "train.save_every=50000", "train.validate_every=50000")


@pytest.fixture
def place(tmp_path):
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path)
    return tmp_path


def train(place, *overrides: str, code: int = 0) -> str:
    return workplace.train(place, "--job_name", "tiny", *overrides, code=code)


def one_line(out: str) -> str:
    """The error's line, which must be the only one of its kind, without a traceback."""
    lines = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in out and len(lines) == 1, out
    return lines[0]


def damage(image: Path) -> bytes:
    """Spoil the image's pixels and leave its header and end; returns what it was."""
    content = image.read_bytes()
    image.write_bytes(content[:60] + bytes(byte ^ 255 for byte in content[60:90]) + content[90:])
    return content


@contextlib.contextmanager
def under_way(place, *overrides: str, torchrun: int = 0):
    """A training that has made some steps."""
    words = ("--job_name", "tiny", "--device", "cpu", *ENDLESS, *overrides)
    process = start(place, SCRIPT, *words, torchrun=torchrun, output=subprocess.PIPE)
    try:
        next(line for line in process.stderr if line.startswith("epoch 2/"))
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The final and the best weights of two epochs, validated after each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_pairs(folder / "datasets" / "GoPro")
    make_config(folder)
    train(folder, *VALIDATED_TWICE)
    return [weights(folder), weights(folder, kind="best")]


def same_as(undisturbed, place) -> bool:
    return all(
        now.keys() == expected.keys() and all(torch.equal(now[name], expected[name]) for name in expected)
        for now, expected in zip((weights(place), weights(place, kind="best")), undisturbed, strict=True)
    )


def test_a_failed_validation_loses_no_step_and_is_made_up_for(place, undisturbed):
    overrides = (*VALIDATED_TWICE, "train.save_every=2")
    image = place / "datasets/GoPro/test/blur/001.png"
    content = damage(image)
    for _ in range(2):
        assert "test/blur/001.png" in one_line(train(place, *overrides, code=2))
    state = torch.load(place / LAST, weights_only=True)
    assert state["validation_due"] and state["iteration"] > 0
    image.write_bytes(content)
    assert "resuming from" in train(place, *overrides)
    assert not torch.load(place / LAST, weights_only=True)["validation_due"]
    assert same_as(undisturbed, place)


@pytest.mark.parametrize("epochs", [1, 2])  # the first validation, and the last
def test_a_request_to_stop_ends_a_validation_which_is_made_up_for(place, monkeypatch, undisturbed, epochs):
    calls = []

    def signalled(*arguments, **options):
        calls.append(None)
        if len(calls) == epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments, **options)

    monkeypatch.setattr("engine.train.trainer.validate", signalled)
    out = train(place, *VALIDATED_TWICE, code=STOPPED)
    state = torch.load(place / LAST, weights_only=True)
    assert "stopped by SIGTERM" in out and state["validation_due"] and state["epoch"] == epochs
    assert not (place / "results/tiny/models/final_XYScanNet_stage1.pth").exists()
    train(place, *VALIDATED_TWICE)
    assert same_as(undisturbed, place)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL, signal.SIGTERM])
def test_ranks_save_and_end_when_their_launcher_does(place, number):
    with under_way(place, torchrun=2) as launcher:
        launcher.send_signal(number)
        rest = launcher.stderr.read()  # to its end: that of the last process
    state = torch.load(place / LAST, weights_only=True)
    assert state["iteration"] > 1 and "stopped by" in rest
    assert (place / "results/tiny/.stopped_stage1").exists()


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_state_before_kept(place):
    train(place, "data.val=null", "train.epochs=2")
    before = {path: path.read_bytes() for path in (place / "results/tiny/models").iterdir()}
    limit = len(before[place / LAST]) // 2
    longer = (SCRIPT, "--job_name", "tiny", "--device", "cpu", "data.val=null", "train.epochs=4")
    out = workplace.run(place, *longer, code=2, file_limit=limit)
    assert re.search(r"[\d.]+ MB are needed and [\d.,]+ MB are free", one_line(out))
    assert before == {path: path.read_bytes() for path in (place / "results/tiny/models").iterdir()}
    train(place, "data.val=null", "train.epochs=4")


def test_a_log_that_cannot_be_written_ends_in_one_line(tmp_path, capsys, caplog):
    run_logger = RunLogger(tmp_path, 1, 10, 0, True)
    run_logger.file.stream.close()
    run_logger.file.stream = open("/dev/full", "w")
    for _ in range(3):
        logging.getLogger("any").warning("a message")
    run_logger.close()
    assert "Traceback" not in capsys.readouterr().err
    assert sum("has stopped" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_training_image_is_named_whoever_reads_it(place, workers):
    damage(place / "datasets/GoPro/train/sharp/002.png")
    assert "train/sharp/002.png" in one_line(train(place, f"data.workers={workers}", code=2))


@pytest.mark.slow
def test_the_death_of_a_data_loader_process_is_one_line(place):
    with under_way(place, "data.workers=2") as process:
        reader = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        os.kill(int(reader), signal.SIGKILL)
        rest = process.stderr.read()
        assert process.wait(60) == 2
    line = one_line(rest)
    assert "DataLoader worker" in line and (reader in line or "handed over" in line)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_data_loader_process_that_dies_while_it_hands_over_a_batch_is_one_line(error):
    with pytest.raises(WorkerError, match="data.workers=0"), explain_failures():
        raise error


def test_weights_that_are_not_finite_are_never_saved(place, monkeypatch):
    monkeypatch.chdir(place)
    run = TrainingRun(load_config("tiny", 1), "cpu")
    with torch.no_grad():
        next(run.network.parameters())[0] = float("inf")
    with pytest.raises(NonFiniteError, match="patch_embed"):
        run.save()
    assert not LAST.exists()


@pytest.mark.slow
def test_a_rank_that_dies_is_one_line_of_the_other(place):
    with under_way(place, torchrun=2) as launcher:
        ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        rest = launcher.stderr.read()  # torchrun adds a report of its own
        assert launcher.wait(60) == 1
    # torchrun's SIGTERM may end the other rank before it can say so; torchrun's report names the one that died first.
    lines = [line for line in rest.splitlines() if line.startswith("error: ")]
    assert len(lines) <= 1 and all("another process of this run has ended" in line for line in lines)
    assert "(SIGKILL)" in rest
    assert rest.count("Traceback") == rest.count("ChildFailedError:")  # none of ours


def test_results_that_cannot_be_written_are_named(place):
    (place / "results").write_text("no folder")
    assert "results" in one_line(train(place, code=2))


def test_a_job_name_that_no_folder_can_have(place):
    out = workplace.train(place, "--job_name", "tiny@" + 300 * "x", code=2)
    assert "Traceback" not in out and "200 bytes" in out


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_comes_with_advice(place, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.chdir(place)
    monkeypatch.setattr(DeblurLoss, "forward", fail)
    with pytest.raises(OutOfMemory, match="train.accumulate.*train.checkpoint_activations.*data.patch_size"):
        Trainer(TrainingRun(load_config("tiny", 1), "cpu")).fit()


def test_a_run_that_fails_in_its_first_step_can_start_again_from_weights_in_its_own_folder(place, monkeypatch):
    train(place, "train.epochs=1")
    (place / LAST).unlink()
    best = "train.start_from=results/tiny/models/best_XYScanNet_stage1.pth"
    with monkeypatch.context() as failing:
        failing.setattr(DeblurLoss, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(place, best)
    assert "kept as" not in train(place, best, "train.epochs=1")


def test_too_little_memory_for_validation_has_advice_of_its_own(place, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.chdir(place)
    monkeypatch.setattr(trainer, "validate", fail)
    with pytest.raises(OutOfMemory, match="validation: .*data.val=null"):
        Trainer(TrainingRun(load_config("tiny", 1), "cpu")).fit()
    assert torch.load(place / LAST, weights_only=True)["validation_due"]
