"""Training on degradations that are made of sharp images: by the real scripts, resumed exactly, refused clearly."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from datasets.catalogue import DataSet
from datasets.degradation import Degradation, degrade_folder, parse_degradation
from engine.config import ConfigError, load_config
from engine.console import readable_errors
from engine.predict.test_set import predict
from engine.train.run import TrainingRun
from tests.workplace import ROOT, make_config, make_pairs, train, weights

DATA = {"train": "photos/train", "val": "photos/val"}


@pytest.fixture
def place(tmp_path):
    """Sharp images alone, in two plain folders."""
    make_pairs(tmp_path / "pairs")
    for split, folder in (("train", "train"), ("test", "val")):
        shutil.copytree(tmp_path / "pairs" / split / "sharp", tmp_path / "photos" / folder)
    return tmp_path


@pytest.mark.parametrize("text", ["noise:25", "jpeg:10-40", "sr:4"])
def test_two_steps_of_each_and_its_test_set_predicted(place, text, monkeypatch, capsys):
    make_config(place, data={**DATA, "degradation": text}, train={"epochs": None, "iterations": 2})
    out = train(place, "--job_name", "tiny")
    assert f"degradation: {text}" in (place / "results/tiny/config_stage1.yaml").read_text()
    validated = float(re.search(r"validation PSNR (\d+\.\d+) dB.*\(3 images\)", out)[1])

    # What validation scored is what the command writes and the predict scripts restore.
    monkeypatch.chdir(place)
    degrade_folder("photos/val", "written", parse_degradation(text))
    predict(
        DataSet(None, "Photographs", "written", {}, "images"),
        ["--job_name", "tiny", "--device", "cpu", "--weights", "results/tiny/models/best_XYScanNet_stage1.pth"],
    )
    done = capsys.readouterr().out
    assert float(re.search(r"restored +(\d+\.\d+)", done)[1]) == pytest.approx(validated, abs=0.01)


def test_a_resumed_run_ends_bit_for_bit_the_same_with_other_readers(place):
    make_config(place, data={**DATA, "degradation": "noise:15-50"}, train={"epochs": 3})
    arguments = ["--job_name", "tiny"]
    train(place, *arguments)
    undisturbed, models = weights(place), place / "results" / "tiny" / "models"
    (models / "final_XYScanNet_stage1.pth").unlink()
    (models / "previous_last_XYScanNet_stage1.pth").replace(models / "last_XYScanNet_stage1.pth")
    out = train(place, *arguments, "data.workers=1", "data.cache=memmap")
    assert re.search(r"resuming from .* at step [1-3] of 4", out)
    resumed = weights(place)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_of_a_data_set_of_pairs_the_sharp_images_are_degraded(place, monkeypatch):
    monkeypatch.chdir(place)
    make_config(place, data={"train": "pairs", "val": "pairs", "degradation": "noise:25"})
    data = TrainingRun(load_config("tiny", 1), "cpu").data
    for split, pairs in (("train", data.train_pairs), ("test", data.val_pairs)):
        assert {pair.blurred.parent for pair in pairs} == {Path("pairs") / split / "sharp"}


def test_images_beside_sharp_ones_are_one_clear_line(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "pairs/train/blur").rename(place / "pairs/train/unknown")
    make_config(place, data={"train": "pairs/train", "val": None, "degradation": "noise:25"})
    with pytest.raises(SystemExit), readable_errors():
        TrainingRun(load_config("tiny", 1), "cpu")
    assert re.fullmatch("error: data.train: pairs/train: .*sharp images.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "data, words",
    [
        ({"degradation": "haze:3"}, "data.degradation: must be noise:SIGMA (1 to 255)"),
        ({"degradation": "sr:1"}, "not 'sr:1'"),
        ({"degradation": 25}, "data.degradation: must be text or null, not 25"),
        ({"degradation": "sr:4", "patch_size": 30}, "data.patch_size: must be a multiple of 4 for sr:4, not 30"),
        ({"degradation": "sr:4", "val": ["a", "b"]}, "data.val: must be one folder of sharp images"),
        ({"degradation": "jpeg:20", "variant": "J"}, "data.variant: is for pairs of RealBlur"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "wrong", data=data)
    with pytest.raises(ConfigError) as error:
        load_config("wrong", 1)
    assert words in str(error.value) and "configs/wrong/config_stage1.yaml" in str(error.value)


@pytest.mark.parametrize(
    "job, expected",
    [
        ("denoise", Degradation("noise", 25, 25)),
        ("jpeg", Degradation("jpeg", 10, 40)),
        ("superresolution", Degradation("sr", 4, 4)),
    ],
)
def test_recipes_of_the_repository_degrade_as_they_are_called(monkeypatch, job, expected):
    monkeypatch.chdir(ROOT)
    stages = [load_config(job, stage) for stage in (1, 2)]
    assert all(parse_degradation(config.data.degradation) == expected for config in stages)
    assert [config.model.dim for config in stages] == [48, 48]
    assert stages[0].data.patch_size < stages[1].data.patch_size
