"""The predict scripts on small data with a tiny network: real processes, resumed, refused, shared, scored."""

import csv
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.catalogue import DATA_SETS, DataSet
from datasets.images import read_rgb
from engine.predict.test_set import predict as predict_any
from metrics.psnr import psnr
from metrics.ssim import ssim_matlab_rgb, ssim_per_channel
from models import XYScanNet, load_network
from tests.engine.predict.test_peers import nafnet
from tests.workplace import ROOT, make_config, make_pairs, run, start

SCRIPT = "predict_GoPro_test_results.py"
predict = functools.partial(predict_any, "gopro")
JOB = ("--job_name", "tiny", "--device", "cpu")


@functools.cache
def random_weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"module.{name}": value for name, value in XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict().items()}


def make_weights(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_weights(seed), path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with three test pairs of an odd size and a job's weights."""
    make_pairs(tmp_path / "datasets" / "GoPro", train=0, test=3, size=(21, 30))
    make_weights(tmp_path / "results" / "tiny" / "models" / "best_XYScanNet_stage2.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def table(place: Path, name: str = "results/tiny/images.csv") -> dict[str, dict[str, str]]:
    with (place / name).open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def scores(place: Path, images: str = "results/tiny/images") -> dict[str, dict[str, str]]:
    """Without what changes with the files' times."""
    rows = table(place, f"{images}_scores/scores.csv")
    return {name: {key: row[key] for key in row if key not in ("files", "check")} for name, row in rows.items()}


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict(argv=[*JOB, *arguments])
    assert stopped.value.code == 2


def test_a_test_set_is_restored_saved_scored_and_reported(place, capsys):
    predict(argv=list(JOB))
    out = capsys.readouterr().out
    network = load_network(place / "results" / "tiny" / "models" / "best_XYScanNet_stage2.pth")
    assert list(table(place)) == ["000", "001", "002"]
    assert list(table(place)["000"]) == ["name", "seconds", "bytes", "input", "check"]
    rows = scores(place)
    for name, row in rows.items():
        restored, blurred, sharp = (
            read_rgb(place / folder / f"{name}.png")
            for folder in ("results/tiny/images", "datasets/GoPro/test/blur", "datasets/GoPro/test/sharp")
        )
        assert float(row["psnr"]) == pytest.approx(psnr(restored, sharp), abs=1e-6)
        assert float(row["ssim_matlab_rgb"]) == pytest.approx(ssim_matlab_rgb(restored, sharp), abs=1e-6)
        assert float(row["ssim_per_channel"]) == pytest.approx(ssim_per_channel(restored, sharp), abs=1e-6)
        assert float(row["blurred_psnr"]) == pytest.approx(psnr(blurred, sharp), abs=1e-6)
        padded = np.pad(blurred, ((0, 3), (0, 2), (0, 0)), mode="reflect").astype(np.float32) / 255 - 0.5
        with torch.no_grad():
            expected = network(torch.from_numpy(padded).permute(2, 0, 1)[None])[0, :, :21, :30]
        expected = ((expected.clamp(-0.5, 0.5) + 0.5) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(restored - expected).max() <= 1 and np.mean(restored != expected) < 0.01
    mean = np.mean([float(row["psnr"]) for row in rows.values()])
    assert re.search(rf"restored +{mean:.2f} ", out) and re.search(r"the paper's XYScanNet +33.91 +0.968", out)
    assert "Not comparable with the paper's figures: they are over all 1111 images" in out
    assert "median of 2" in out and "peak memory of a process: " in out
    means = json.loads((place / "results/tiny/images_scores/scores.json").read_text())
    assert means["metrics"]["psnr"]["value"] == pytest.approx(mean) and means["images"]["scored"] == 3
    assert re.search(rf"blurred input +{means['metrics']['blurred_psnr']['value']:.2f}", out)
    record = json.loads((place / "results/tiny/images.json").read_text())
    assert record["results"]["images"] == 3 and means["made_by"]["weights_sha256"] == record["weights_sha256"]
    assert record["kl_gate"] == "image" and record["tile"] is None and "torch" in record["versions"]
    assert not list((place / "results").rglob("*.tmp"))


def test_results_of_another_network_s_code_do_not_mix(place, monkeypatch, capsys):
    predict(argv=[*JOB, "--limit", "1"])
    monkeypatch.setattr("engine.predict.inference.network_code", lambda: "edited")
    refused()
    assert "network_code" in capsys.readouterr().err
    predict(argv=[*JOB, "--limit", "1", "--overwrite"])


def test_two_runs_do_not_share_a_folder(place, capsys):
    images = place / "results" / "tiny" / "images"
    hold = f"import pathlib, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
    hold += "from engine.lock import run_lock; from engine.predict.record import Predictions\n"
    hold += f"images = pathlib.Path({str(images)!r})\n"
    hold += "with run_lock(images, Predictions(images, {}).lock): print('held', file=sys.stderr), time.sleep(600)"
    (place / "hold.py").write_text(hold)
    with start(place, str(place / "hold.py"), output=subprocess.PIPE) as holder:
        assert holder.stderr.readline() == "held\n"
        refused()
        assert f"{images.relative_to(place)} is in use by another run, process {holder.pid}" in capsys.readouterr().err
        holder.kill()
    predict(argv=list(JOB))


def test_the_same_command_again_only_does_what_is_missing(place, capsys):
    predict(argv=[*JOB, "--limit", "2"])
    images = place / "results" / "tiny" / "images"
    first, rows, scored = (images / "000.png").stat().st_mtime_ns, table(place), scores(place)
    assert list(rows) == ["000", "001"]
    (images / "001.png").unlink()
    predict(argv=list(JOB))
    assert (images / "000.png").stat().st_mtime_ns == first
    assert table(place)["000"] == rows["000"] and scores(place)["001"] == scored["001"]
    assert sorted(path.name for path in images.iterdir()) == ["000.png", "001.png", "002.png"]
    capsys.readouterr()
    everything = scores(place)
    predict(argv=list(JOB))
    out = capsys.readouterr().out
    assert len(everything) == 3 and scores(place) == everything
    assert "restored" in out and "time per image" not in out  # nothing was restored, nothing was timed


def test_other_weights_or_settings_do_not_mix_with_what_is_there(place, capsys):
    predict(argv=list(JOB))
    before = {path: path.read_bytes() for path in (place / "results").rglob("*") if path.is_file()}
    other = str(make_weights(place / "other.pth", seed=1))
    shutil.copytree("datasets/GoPro/test", "datasets/other/test")
    shutil.copy("datasets/other/test/blur/000.png", "datasets/other/test/blur/001.png")
    for arguments, key in (
        (("--weights", other), "weights_sha256"),
        (("--precision", "bf16"), "precision"),
        (("--tile", "16", "--overlap", "8"), "tile"),
        (("--input", "datasets/other"), "input"),
    ):
        refused(*arguments)
        error = capsys.readouterr().err
        assert f"    {key}: " in error and "Use --overwrite to redo them, or another --output" in error
    assert before == {path: path.read_bytes() for path in (place / "results").rglob("*") if path.is_file()}
    predict(argv=[*JOB, "--weights", other, "--limit", "1", "--overwrite"])
    assert [path.name for path in (place / "results/tiny/images").iterdir()] == ["000.png"]
    assert list(scores(place)) == ["000"]
    assert (place / "results/tiny/images/000.png").read_bytes() != before[place / "results/tiny/images/000.png"]
    predict(argv=[*JOB, "--limit", "1", "--output", "elsewhere/bf16", "--precision", "bf16"])
    assert len(table(place, "elsewhere/bf16.csv")) == 1


def test_the_same_weights_under_another_name_go_on(place):
    predict(argv=[*JOB, "--limit", "1"])
    copy = shutil.copy("results/tiny/models/best_XYScanNet_stage2.pth", "copy.pth")
    predict(argv=[*JOB, "--weights", str(copy)])
    assert len(table(place)) == 3


def test_missing_weights_are_never_replaced_by_others(place, capsys):
    models = place / "results" / "tiny" / "models"
    (models / "best_XYScanNet_stage2.pth").rename(models / "final_XYScanNet_stage2.pth")
    refused()
    error = capsys.readouterr().err
    assert "no weights at results/tiny/models/best_XYScanNet_stage2.pth" in error
    assert "holds final_XYScanNet_stage2.pth" in error and "--weights FILE" in error
    assert not (place / "results" / "tiny" / "images").exists()


def test_any_data_set_of_the_catalogue_is_predicted_and_scored_with_its_own_metrics(place, monkeypatch, capsys):
    shutil.copytree("datasets/GoPro", "datasets/Mine")
    mine = DataSet("mine", "Mine", "datasets/Mine", {"test": 3}, "images_mine", metrics=("psnr", "aligned"))
    monkeypatch.setitem(DATA_SETS, "mine", mine)
    predict_any(argv=["--dataset", "mine", *JOB, "--evaluate"])
    record = json.loads((place / "results/tiny/images_mine_scores/scores.json").read_text())
    assert record["dataset"] == "mine" and {"psnr", "psnr_aligned", "blurred_psnr"} <= record["metrics"].keys()
    out = capsys.readouterr().out
    assert "Mine, profile paper" in out and "(paper)" not in out and "Not comparable" not in out


def test_images_that_an_interrupted_run_left_damaged_are_restored_again(place):
    predict(argv=list(JOB))
    image = place / "results/tiny/images/001.png"
    before = image.read_bytes()
    image.write_bytes(bytes(len(before)))
    predict(argv=list(JOB))
    assert image.read_bytes() == before and len(scores(place)) == 3


@pytest.mark.parametrize(
    "script, folder, images, kind, paper",
    [
        (SCRIPT, "GoPro", "images", "best", "33.91"),
        ("predict_HIDE_results.py", "HIDE", "images_hide", "best", "31.74"),
        ("predict_RWBI_results.py", "RWBI", "images_rwbi", "best", "NIQE 3.383"),
        ("predict_RealBlur_J_test_results.py", "RealBlur_J", "images_realj", "final", "ST-LPIPS 0.041"),
        ("predict_RealBlur_R_test_results.py", "RealBlur_R", "images_realr", "final", "ST-LPIPS 0.012"),
    ],
)
def test_every_script_has_its_own_places(place, monkeypatch, capsys, script, folder, images, kind, paper):
    (place / "datasets" / "GoPro").rename(place / "datasets" / folder)
    models = place / "results" / "tiny" / "models"
    (models / "best_XYScanNet_stage2.pth").rename(models / f"{kind}_XYScanNet_stage2.pth")
    monkeypatch.setattr(sys, "argv", [script, *JOB, "--limit", "1"])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert (place / "results" / "tiny" / images / "000.png").is_file()
    out = capsys.readouterr().out
    assert paper in out and ("RealBlur's own protocol aligns" in out) == ("RealBlur" in script)


def test_blurred_images_alone_are_restored_without_scores(place, capsys):
    photos = place / "photos"
    (photos / "night").mkdir(parents=True)
    for name in ("a.png", "night/b.png"):
        cv2.imwrite(str(photos / name), np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    photos = DataSet(None, "photos", "photos", {}, "images")
    predict_any(photos, [*JOB, "--output", "out"])
    assert read_rgb(place / "out" / "night" / "b.png").shape == (5, 7, 3)
    assert len(table(place, "out.csv")) == 2 and not (place / "out_scores").exists()
    out = capsys.readouterr().out
    assert "PSNR" not in out and "paper" not in out and "time per image" in out


def test_two_folders_on_the_command_line(place):
    predict(argv=[*JOB, "--input", "datasets/GoPro/test/blur", "datasets/GoPro/test/sharp", "--output", "out"])
    assert len(table(place, "out.csv")) == 3


def test_batches_of_equal_size_change_nothing(place):
    for kind in ("blur", "sharp"):
        image = np.random.default_rng(1).integers(0, 256, (16, 30, 3), dtype=np.uint8)
        cv2.imwrite(f"datasets/GoPro/test/{kind}/0005.png", image)  # another size, between 000 and 001
    predict(argv=[*JOB, "--output", "single"])
    predict(argv=[*JOB, "--output", "batched", "--batch_size", "2"])
    single, batched = table(place, "single.csv"), table(place, "batched.csv")
    assert list(single) == list(batched) == ["000", "0005", "001", "002"]
    for name in single:
        difference = read_rgb(place / f"single/{name}.png").astype(int) - read_rgb(place / f"batched/{name}.png")
        assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 0.01


def test_the_batch_counts_where_the_gate_is_the_batchs(place, capsys):
    for stage in (1, 2):
        make_config(place, stage=stage, model={"kl_gate": "batch"})
    predict(argv=[*JOB, "--limit", "2"])
    assert json.loads((place / "results/tiny/images.json").read_text())["kl_gate"] == "batch"
    refused("--batch_size", "2")
    assert "batch_size: 1 then, 2 now" in capsys.readouterr().err


def test_tiles_are_recorded_and_reported(place, capsys):
    predict(argv=[*JOB, "--limit", "1", "--tile", "16", "--overlap", "8"])
    assert "including the paper's: tiles score differently" in capsys.readouterr().out
    record = json.loads((place / "results/tiny/images.json").read_text())
    assert (record["tile"], record["overlap"]) == (16, 8)


def test_streamed_and_whole_images_go_together(place):
    predict(argv=[*JOB, "--limit", "1"])
    predict(argv=[*JOB, "--stream"])
    assert json.loads((place / "results/tiny/images.json").read_text())["streamed"] and len(table(place)) == 3
    predict(argv=[*JOB, "--output", "whole", "--tile", "512"])  # one tile over all of it
    for name in table(place):
        a, b = (read_rgb(place / folder / f"{name}.png").astype(int) for folder in ("results/tiny/images", "whole"))
        assert np.abs(a - b).max() <= 1 and np.mean(a != b) < 0.01


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--tile", "20"), "tile must be a multiple of 8"),
        (("--tile", "32", "--overlap", "32"), "overlap must be a multiple of 8 pixels from 0 to below the tile"),
        (("--batch_size", "0"), "--batch_size must be at least 1"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--device", "quantum"), "--device"),
        (("--input", "a", "b", "c"), "--input takes one folder or two, got 3"),
        (("--input", "nowhere"), "nowhere: no such folder"),
        (("--weights", "nowhere.pth"), "no weights at nowhere.pth"),
        (("--output", "datasets/GoPro/test/blur"), "is an input image; choose another --output"),
    ],
)
def test_impossible_commands_say_what_is_wrong(place, capsys, arguments, complaint):
    refused(*arguments)
    assert complaint in capsys.readouterr().err


def test_a_missing_data_set_says_where_it_is_looked_for(place, capsys):
    shutil.rmtree("datasets/GoPro")
    refused()
    assert "datasets/GoPro: no such folder; unpack GoPro there, or say where it lies with --input" in (
        capsys.readouterr().err
    )


def test_sizes_that_differ_name_both_files_before_anything_is_restored(place, capsys):
    cv2.imwrite("datasets/GoPro/test/sharp/001.png", np.zeros((20, 30, 3), np.uint8))
    refused()
    error = capsys.readouterr().err
    assert "blur/001.png: 30x21 pixels, but its sharp" in error and "test/sharp/001.png has 30x20" in error
    assert not (place / "results/tiny/images").exists()


def test_a_truncated_image_is_named_before_anything_is_restored(place, capsys):
    image = place / "datasets/GoPro/test/blur/002.png"
    image.write_bytes(image.read_bytes()[:-30])
    refused()
    assert "datasets/GoPro/test/blur/002.png: truncated" in capsys.readouterr().err
    assert not (place / "results/tiny/images").exists()


def test_killed_and_started_again_it_ends_as_if_never_stopped(place):
    make_pairs(place / "datasets" / "GoPro", train=0, test=12, size=(32, 48))
    predict(argv=[*JOB, "--output", "undisturbed"])
    process = start(place, SCRIPT, *JOB, "--output", "stopped")
    journal = place / "stopped.csv.0"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert journal.is_file() and not (place / "stopped.csv").read_text().count("\n") > 1
    predict(argv=[*JOB, "--output", "stopped"])
    assert scores(place, "stopped") == scores(place, "undisturbed")
    assert len(table(place, "stopped.csv")) == 12 and not journal.exists()
    for name in table(place, "stopped.csv"):
        assert (place / f"stopped/{name}.png").read_bytes() == (place / f"undisturbed/{name}.png").read_bytes()


@pytest.mark.slow
def test_two_processes_share_the_images_and_write_one_table(place):
    out = run(place, SCRIPT, *JOB, "--output", "shared", processes=2)
    assert out.count("the paper's XYScanNet") >= 1 and out.count("restored   ") == 1
    predict(argv=[*JOB, "--output", "alone"])
    assert scores(place, "shared") == scores(place, "alone")
    assert len(table(place, "shared.csv")) == 3
    assert sorted(os.listdir(place / "shared")) == sorted(os.listdir(place / "alone"))
    assert not list(place.glob("shared.csv.*"))


def test_a_result_that_is_not_finite_is_not_written(place, capsys):
    """In single precision every weight is finite, and yet the activations overflow."""
    path = place / "results" / "tiny" / "models" / "best_XYScanNet_stage2.pth"
    state = torch.load(path, weights_only=True)
    torch.save({name: value * 1e30 if value.ndim == 4 else value for name, value in state.items()}, path)
    refused()
    assert "datasets/GoPro/test/blur/000.png" in capsys.readouterr().err
    assert not list((place / "results").rglob("*.png"))
    assert not table(place) and not list((place / "results" / "tiny").glob("images.csv.*"))


@pytest.mark.slow
def test_ctrl_c_ends_the_script_and_the_same_command_goes_on(place):
    make_pairs(place / "datasets" / "GoPro", train=0, test=12, size=(112, 160))
    process = start(place, SCRIPT, *JOB, output=subprocess.PIPE)
    until, images = time.monotonic() + 120, place / "results" / "tiny" / "images"
    while time.monotonic() < until and not (images / "001.png").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(60) == 130 and "Traceback" not in errors, errors
    made = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert 0 < len(made) < 12 and all(read_rgb(images / name).shape == (112, 160, 3) for name in made)
    predict(argv=list(JOB))
    assert len(table(place)) == 12
    assert sum((images / name).stat().st_mtime_ns == when for name, when in made.items()) >= len(made) - 1


def test_another_network_goes_through_the_same_protocol(place, capsys):
    pytest.importorskip("spandrel", reason="the package spandrel is not installed")
    torch.manual_seed(0)
    network = nafnet().eval()
    torch.save({"params": network.state_dict()}, place / "nafnet.pth")
    predict(argv=["--job_name", "nafnet", "--device", "cpu", "--weights", "nafnet.pth"])
    record = json.loads((place / "results/nafnet/images.json").read_text())
    assert record["architecture"] == "NAFNet" and record["licence"].startswith("permissive")
    assert record["kl_gate"] is None and not record["streamed"] and len(scores(place, "results/nafnet/images")) == 3
    blurred = read_rgb(place / "datasets/GoPro/test/blur/000.png")
    padded = np.pad(blurred, ((0, 3), (0, 2), (0, 0)), mode="reflect").astype(np.float32) / 255
    with torch.no_grad():
        expected = network(torch.from_numpy(padded).permute(2, 0, 1)[None])[0, :, :21, :30]
    expected = (expected.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    restored = read_rgb(place / "results/nafnet/images/000.png")
    assert np.abs(restored - expected).max() <= 1 and np.mean(restored != expected) < 0.01
