"""Resuming with another recipe: refused where it would mix two runs, logged and recorded where it is useful."""

import logging
import shutil

import pytest
import yaml

from engine.config import load_config
from engine.train.checkpoint import CheckpointError
from engine.train.recipe import MAY_CHANGE, differences, recipe_in, recipe_of
from engine.train.run import TrainingRun
from engine.train.trainer import Trainer
from tests.workplace import make_config, make_pairs, train

LAST, RECORD = "results/tiny/models/last_XYScanNet_stage1.pth", "results/tiny/config_stage1.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a short run, at step 3 of 3."""
    place = tmp_path_factory.mktemp("trained")
    make_pairs(place / "datasets" / "GoPro")
    make_config(place)
    train(place, "--job_name", "tiny", "train.validate_every=9")
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, as working folder."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def resumed(*overrides: str) -> TrainingRun:
    run = TrainingRun(load_config("tiny", 1, overrides), "cpu")
    assert run.resume()
    return run


@pytest.mark.parametrize(
    "override",
    [
        "model.kl_gate=batch",
        "model.slices=intra",
        "model.scan=bidirectional",
        "model.dim=16",
        "model.unshuffle=2",
        "model.fusion=none",
        "loss.pixel=mse",
        "loss.edge_weight=0.1",
        "loss.weights={mse: 0.1}",
        "train.precision=bf16",
        "data.patch_size=40",
        "data.batch_size=2",
        "train.ema_decay=0.5",
        "train.seed=1",
        "optim.name=muon",
        "train.iterations=2",
    ],
)
def test_a_change_that_makes_another_run_is_refused_and_nothing_is_written(trained, monkeypatch, override):
    monkeypatch.chdir(trained)
    before = {path: path.read_bytes() for path in trained.rglob("*stage1*") if path.is_file()}
    extra = ["train.epochs=null"] if override.startswith("train.iterations") else []
    with pytest.raises(CheckpointError, match=override.partition("=")[0].replace(".", "[.]")):
        resumed(override, *extra)
    assert before == {path: path.read_bytes() for path in trained.rglob("*stage1*") if path.is_file()}


def test_the_data_may_be_moved_but_not_exchanged(place):
    shutil.move("datasets/GoPro", "datasets/elsewhere")
    resumed("data.train=datasets/elsewhere", "data.val=null")
    for kind in ("blur", "sharp"):
        shutil.move(f"datasets/elsewhere/train/{kind}/000.png", f"datasets/elsewhere/train/{kind}/900.png")
    with pytest.raises(CheckpointError):
        resumed("data.train=datasets/elsewhere", "data.val=null")


def test_useful_changes_are_logged_and_recorded(place, caplog):
    caplog.set_level(logging.INFO)
    Trainer(resumed("optim.lr=5e-4", "train.epochs=4", "data.workers=1")).fit()
    log, record = (place / "results/tiny/train_stage1.log").read_text(), (place / RECORD).read_text()
    for change in ("optim.lr 0.001 -> 0.0005", "train.epochs 2 -> 4", "data.workers 0 -> 1"):
        assert change in log and change in record
    assert yaml.safe_load(record)["optim"]["lr"] == 5e-4
    Trainer(resumed("optim.lr=5e-4", "train.epochs=6")).fit()
    record = (place / RECORD).read_text()
    assert "optim.lr 0.001 -> 0.0005" in record and "train.epochs 4 -> 6" in record


def test_edited_code_of_the_network_is_noted(place, monkeypatch):
    monkeypatch.setattr("engine.train.run.network_code", lambda: "edited")
    assert any(
        "code in models/" in change and "-> edited" in change for change in resumed("train.epochs=4").new_changes
    )


def test_keys_added_since_have_their_defaults():
    now = {"model.dim": 48, "model.fusion": "aff"}
    before = recipe_in({"recipe": {"model.dim": 48, "model.gone": 1}})
    assert differences(before, now)[0] == ["model.fusion klff, this run has aff"]
    assert len(differences(before, {**now, "loss.weights": {"mse": 0.1}})[0]) == 2


def test_only_existing_keys_may_change(place):
    assert recipe_of(load_config("tiny", 1), []).keys() >= MAY_CHANGE
