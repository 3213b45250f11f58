"""The training curve: what is read from the logs, and the picture."""

import subprocess

import cv2
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from analysis.curve import LOSS, PSNR, main, read_run, smoothed
from tests.forks import Script
from tests.workplace import ROOT


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A job of two stages, 30 and 20 steps, the second validated."""
    monkeypatch.chdir(tmp_path)
    for stage, steps in ((1, 30), (2, 20)):
        with SummaryWriter(tmp_path / "results" / "tiny" / "logs" / f"stage{stage}") as board:
            for step in range(10, steps + 1, 10):
                board.add_scalar(LOSS, 1 / step, step)
                board.add_image("picture", torch.zeros(3, 4, 4), step)
                if stage == 2:
                    board.add_scalar(PSNR, 20 + step, step)
    return tmp_path / "results"


def test_stage_2_follows_stage_1(results):
    run = read_run(results / "tiny" / "logs")
    assert [[step for step, _ in stage] for stage in run[LOSS]] == [[10, 20, 30], [40, 50]]
    assert run[PSNR] == [[], [(40, 30.0), (50, 40.0)]]


def test_a_resumed_run_has_each_step_once(results):
    with SummaryWriter(results / "tiny" / "logs" / "stage1", purge_step=21) as board:  # step 30 is made again
        board.add_scalar(LOSS, 7.0, 30)
    series = read_run(results / "tiny" / "logs")[LOSS][0]
    assert len(series) == 3 and dict(series) == pytest.approx({10: 0.1, 20: 0.05, 30: 7.0})


def test_smoothing_takes_means_of_neighbours():
    assert smoothed([(1, 2.0), (2, 4.0)]) == [(1, 2.0), (2, 4.0)]
    series = smoothed([(step, float(step)) for step in range(205)])
    assert len(series) == 51 and series[0] == (1.5, 1.5) and series[-1] == (201.5, 201.5)


def test_the_picture_and_a_job_that_was_not_trained(results, capsys):
    assert main(["tiny"]) == 0
    picture = cv2.imread(capsys.readouterr().out.strip())
    assert picture.shape[1] > 1000 and (picture < 250).any()
    with pytest.raises(SystemExit) as stop:
        main(["other"])
    assert stop.value.code == 2
    assert "results/other/logs: no training has been logged there" in capsys.readouterr().err


def test_run_as_a_module_it_ends_with_a_line_too():
    with Script(["-m", "analysis.curve", "not_trained"], ROOT, output=subprocess.PIPE) as command:
        error = command.stderr.read()
    assert command.returncode == 2 and error.startswith("error: results/not_trained") and "Traceback" not in error
