"""Two runs over the same results: the second is told of the first, and the lock goes with its holder."""

import logging
import os
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from engine import lock
from engine.lock import BusyError, run_lock
from tests.workplace import make_config, make_pairs, run, start, train

SCRIPT = "train_XYScanNet_stage1.py"


def hold(folder: Path, held: Event) -> None:
    with run_lock(folder):
        held.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / results / tiny."""
    context = get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "results" / "tiny", held))
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_holder_is_named_and_its_death_frees_the_lock(holder, tmp_path):
    with pytest.raises(BusyError, match=f"process {holder.pid} on "), run_lock(tmp_path / "results" / "tiny"):
        pytest.fail("two at once")
    holder.kill()
    holder.join()
    for _ in range(2):
        with run_lock(tmp_path / "results" / "tiny"):
            assert str(os.getpid()) in (tmp_path / "results" / "tiny" / ".lock").read_text()


def test_without_locks_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with run_lock(tmp_path):
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_of_the_same_job_is_refused_in_one_line(holder, tmp_path, processes):
    """Also where it is one of several processes, which all end."""
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path)
    if processes == 1:
        out = train(tmp_path, "--job_name", "tiny", code=2)
    else:
        out = run(tmp_path, SCRIPT, "--job_name", "tiny", "--device", "cpu", processes=processes, code=2)
    assert out.count(f"process {holder.pid} on ") == 1 and "engine/lock.py" not in out
    assert not (tmp_path / "results" / "tiny" / "models").exists()


def test_two_trainings_started_at_once_are_one(tmp_path):
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path)
    both = [start(tmp_path, SCRIPT, "--job_name", "tiny", "--device", "cpu", "train.epochs=10") for _ in range(2)]
    assert sorted(process.wait(120) for process in both) == [0, 2]
