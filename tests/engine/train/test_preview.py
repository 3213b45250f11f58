"""--dry_run: what it measures, and what it says before a run is stopped by it."""

import re
import shutil
from types import SimpleNamespace

import pytest

from engine.config import load_config, start_weights
from engine.train import preview
from engine.train.run import TrainingRun
from tests.workplace import make_config, make_pairs, make_vgg19, train


@pytest.fixture
def place(tmp_path, monkeypatch):
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path)
    make_config(tmp_path, stage=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(printed: str) -> list[str]:
    return re.findall(r"^PROBLEM (.*)", printed, re.MULTILINE)


def test_a_run_that_can_start_has_no_problems(place):
    make_vgg19(place)
    printed = train(place, "--job_name", "tiny", "--dry_run", "loss.contrast_weight=0.1", "data.cache=memmap")
    assert not problems(printed) and "also training images" not in printed
    for line in ("start: random weights", "cache: 0.00 GB", "step: ", "memory: ", "disk: "):
        assert f"\n{line}" in printed
    assert "GoPro train has 2103 pairs, but 5 were found" in printed  # datasets.check's line: a subset may be meant
    assert not (place / "results").exists() and not (place / "datasets" / ".cache").exists()


def test_missing_weights_of_stage_1(place):
    (problem,) = problems(train(place, "--job_name", "tiny", "--dry_run", stage=2, code=1))
    assert problem.startswith("results/tiny/models/final_XYScanNet_stage1.pth") and "run stage 1" in problem


def test_a_run_that_resumes_needs_no_initial_weights(place):
    for stage in (1, 2):
        train(place, "--job_name", "tiny", "train.epochs=1", "data.val=null", stage=stage)
    (place / "results" / "tiny" / "models" / "final_XYScanNet_stage1.pth").unlink()
    assert "start: resumes from results/tiny" in train(place, "--job_name", "tiny", "--dry_run", stage=2)


def test_what_would_stop_the_run_at_its_start(place):
    (small,) = problems(train(place, "--job_name", "tiny", "--dry_run", "data.patch_size=200", code=1))
    assert "200" in small
    train(place, "--job_name", "tiny", "train.epochs=1", "data.val=null")
    (forbidden,) = problems(train(place, "--job_name", "tiny", "--dry_run", "optim.name=muon", code=1))
    assert "optim.name adam, this run has muon" in forbidden


def test_a_cache_or_states_that_do_not_fit(place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    cache, states = problems(train(place, "--job_name", "tiny", "--dry_run", "data.cache=memmap", code=1))
    assert "data.cache_dir" in cache and "too little disk space" in states


def test_a_step_that_does_not_fit(place, monkeypatch):
    monkeypatch.setattr(preview, "free_memory", lambda device: 2**20)
    (problem,) = problems(train(place, "--job_name", "tiny", "--dry_run", code=1))
    assert "train.accumulate" in problem


def test_a_damaged_state_is_reported_and_stays_where_it_is(place):
    train(place, "--job_name", "tiny", "train.epochs=2", "train.save_every=1", "data.val=null")
    last = place / "results/tiny/models/last_XYScanNet_stage1.pth"
    last.write_bytes(b"cut short")
    before = sorted(path.name for path in last.parent.iterdir())
    printed = train(place, "--job_name", "tiny", "--dry_run", "train.epochs=2")
    assert "start: resumes from" in printed
    assert sorted(path.name for path in last.parent.iterdir()) == before and last.read_bytes() == b"cut short"


def test_missing_vgg19_is_said_and_left_out(place, monkeypatch):
    monkeypatch.setattr(preview, "find_vgg19", lambda: None)
    printed = train(place, "--job_name", "tiny", "--dry_run", "loss.contrast_weight=0.1")
    assert "VGG19" in printed and "step: " in printed


def test_one_small_crop_tells_the_memory_of_a_share(place):
    config = load_config("tiny", 1, ["data.patch_size=48", "model.dim=16"])
    run = TrainingRun(config, "cpu")
    estimated = preview._measure_step(run, 1, 32)[0] * 4 * 48**2 / 32**2
    assert estimated == pytest.approx(preview._measure_step(run, 4, 48)[0], rel=0.25)


def test_start_weights_lie_where_the_released_code_looks(place):
    make_config(place, "fine", stage=2, train={"start_from": "results/other/models/final_XYScanNet_stage1.pth"})
    named = "results/other/models/final_XYScanNet_stage1.pth"
    own = "results/fine/models/final_XYScanNet_stage1.pth"

    def start(*overrides):
        return start_weights(load_config("fine", 2, overrides)).as_posix()

    assert start() == named
    (place / own).parent.mkdir(parents=True)
    (place / own).touch()
    assert start() == own
    assert start("train.start_from=typo.pth") == "typo.pth"  # what is asked for is never replaced
    (place / named).parent.mkdir(parents=True)
    (place / named).touch()
    assert start() == named


def test_validation_images_that_are_trained_on_are_told(place):
    out = train(place, "--job_name", "tiny", "--dry_run", "data.val=datasets/GoPro/train", code=0)
    assert "data.val: 5 of 5 validation images are also training images" in out
