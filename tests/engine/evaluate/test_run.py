"""evaluate.py on small data: stopped and resumed, every fault named, nothing averaged silently."""

import csv
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from datasets.images import read_rgb
from engine.evaluate import per_image, run, set_level
from engine.evaluate.command import main
from engine.predict.test_set import predict
from metrics.aligned import AlignmentError, psnr_ssim_aligned
from metrics.catalogue import Metric
from metrics.downloads import DownloadError
from metrics.fid import frechet_distance, kernel_distance
from metrics.niqe import niqe
from metrics.psnr import psnr
from metrics.ssim import ssim_matlab_rgb, ssim_per_channel
from models import XYScanNet
from tests.workplace import make_config, make_pairs, start

SIMPLE = ("psnr", "ssim_matlab_rgb", "ssim_per_channel")
TASK = ("--pred", "out", "--gt", "GoPro", "--dataset", "gopro", "--device", "cpu")
FAST = (*TASK, "--workers", "1", "--metrics")


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """GoPro in small; `out` holds its blurred images, a little less blurred."""
    make_pairs(tmp_path / "GoPro", train=0, test=5)
    (tmp_path / "out").mkdir()
    for path in (tmp_path / "GoPro" / "test" / "sharp").iterdir():
        cv2.imwrite(str(tmp_path / "out" / path.name), cv2.blur(cv2.imread(str(path)), (1, 3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def table(place: Path, folder: str = "out_scores") -> dict[str, dict[str, str]]:
    with (place / folder / "scores.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def record(place: Path, folder: str = "out_scores") -> dict:
    return json.loads((place / folder / "scores.json").read_text())


def image(place: Path, kind: str, name: str) -> np.ndarray:
    return read_rgb(place / {"out": "out", "sharp": "GoPro/test/sharp"}[kind] / f"{name}.png")


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2


@pytest.fixture
def scored(monkeypatch):
    """The names of the images that are measured, as they are."""
    names, original = [], per_image.score_image

    def spy(task, scorers):
        names.append((task[0].name, tuple(task[1])))
        return original(task, scorers)

    monkeypatch.setattr(per_image, "score_image", spy)
    return names


def test_two_threads_write_what_one_writes_and_both_are_right(place, capsys):
    main([*TASK, "--metrics", *SIMPLE, "--workers", "2"])
    printed = capsys.readouterr()
    main([*FAST, *SIMPLE, "--output", "alone"])
    assert (place / "out_scores" / "scores.csv").read_bytes() == (place / "alone" / "scores.csv").read_bytes()
    rows, scores = table(place), record(place)
    assert list(rows) == ["000", "001", "002", "003", "004"]
    for name, function in zip(SIMPLE, (psnr, ssim_matlab_rgb, ssim_per_channel), strict=True):
        expected = [function(image(place, "out", k), image(place, "sharp", k)) for k in rows]
        assert [float(row[name]) for row in rows.values()] == expected
        assert scores["metrics"][name]["value"] == pytest.approx(statistics.fmean(expected), abs=1e-12)
        assert scores["metrics"][name]["images"] == 5 and scores["metrics"][name]["how"]["definition"]
    assert scores["profile"] == "paper" and scores["images"]["scored"] == 5 and scores["complete"] is True
    assert {"torch", "numpy", "opencv"} <= scores["versions"].keys() and scores["made_by"] is None
    assert re.search(rf"this run .* {scores['metrics']['psnr']['value']:.2f} ", printed.out)
    assert re.search(r"FFTformer \(paper\) .*34\.21\*? ", printed.out)
    assert "over 5 images, the test set has 1111" in printed.out and "scoring:" in printed.err
    assert not list(place.glob("out_scores/.*.tmp"))


def test_missing_extra_wrong_shape_and_damaged_images_stop_everything_or_are_left_out_by_name(place, capsys):
    (place / "out" / "000.png").rename(place / "out" / "900.png")
    cv2.imwrite("out/001.png", np.zeros((9, 9, 3), np.uint8))
    (place / "out" / "002.png").write_bytes((place / "out" / "002.png").read_bytes()[:-20])
    refused(*FAST, "psnr")
    error = capsys.readouterr().err
    for said in ("1 have no restored image:\n    000", "out/900.png", "out/001.png: 9x9 pixels", "002.png: truncated"):
        assert said in error
    assert not (place / "out_scores").exists()
    main([*FAST, "psnr", "--partial"])
    printed = capsys.readouterr()
    assert "900.png" in printed.err and "over 2 of 5" not in printed.out
    scores = record(place)
    assert (
        scores["images"] | {"suffixes": None}
        == {
            "data_set": 5,
            "scored": 2,
            "missing": ["000"],
            "extra": ["out/900.png"],
            "suffixes": None,
            "wrong_shape": scores["images"]["wrong_shape"],
        }
        and len(scores["images"]["wrong_shape"]) == 2
    )
    assert list(table(place)) == ["003", "004"] and scores["metrics"]["psnr"]["images"] == 2


def test_a_stopped_run_goes_on(place, scored, monkeypatch):
    main([*FAST, *SIMPLE, "--output", "undisturbed"])
    scored.clear()

    def interrupted(restored, sharp):
        if len(scored) == 4:
            raise KeyboardInterrupt
        return psnr(restored, sharp)

    monkeypatch.setattr("metrics.psnr.psnr", interrupted)
    with pytest.raises(SystemExit) as stop:
        main([*FAST, *SIMPLE])
    assert stop.value.code == 130 and len(table(place)) == 3 and record(place)["complete"] is False
    with (place / "out_scores" / "scores.csv").open("a") as file:
        file.write("004,abc,30.")  # as a kill leaves it
    monkeypatch.setattr("metrics.psnr.psnr", psnr)
    scored.clear()
    main([*FAST, *SIMPLE])
    assert [name for name, _ in scored] == ["003", "004"]
    assert (place / "out_scores/scores.csv").read_bytes() == (place / "undisturbed/scores.csv").read_bytes()
    assert record(place)["metrics"] == record(place, "undisturbed")["metrics"]


def test_killed_it_resumes(place):
    for kind in ("blur", "sharp"):
        for k in range(100, 160):
            shutil.copy(place / "GoPro/test" / kind / "000.png", place / "GoPro/test" / kind / f"{k}.png")
    shutil.rmtree(place / "out")
    shutil.copytree(place / "GoPro/test/blur", place / "out")
    arguments = (*TASK, "--metrics", *SIMPLE, "--workers", "2")
    process = start(place, "evaluate.py", *arguments)
    csv_file = place / "out_scores" / "scores.csv"
    while process.poll() is None and not (csv_file.is_file() and csv_file.read_text().count("\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= csv_file.read_text().count("\n") < 66 and record(place)["complete"] is False
    main([*FAST, *SIMPLE])
    assert len(table(place)) == 65 and record(place)["complete"] is True


def test_only_what_is_new_is_measured(place, scored, monkeypatch):
    main([*FAST, "psnr"])
    before = record(place)["metrics"]["psnr"]
    shutil.copy("out/001.png", "out/003.png")
    scored.clear()
    main([*FAST, "psnr", "ssim_per_channel"])
    assert dict(scored) == {
        name: ("psnr", "ssim_per_channel") if name == "003" else ("ssim_per_channel",) for name in table(place)
    }
    assert float(table(place)["003"]["psnr"]) == psnr(image(place, "out", "003"), image(place, "sharp", "003"))
    assert record(place)["metrics"]["psnr"]["value"] != before["value"]
    monkeypatch.setattr(np, "__version__", "another")
    scored.clear()
    main([*FAST, "psnr"])
    assert len(scored) == 5 and record(place)["metrics"]["psnr"]["how"]["numpy"] == "another"
    scored.clear()
    main([*FAST, "psnr"])
    assert not scored
    (place / "edited.py").write_text("another formula")
    monkeypatch.setattr(Metric, "files", [place / "edited.py"])
    main([*FAST, "psnr"])
    assert len(scored) == 5


def test_the_data_set_once_said_of_the_same_images_is_kept(place, capsys):
    main([*FAST, "psnr"])
    without = [word for word in FAST if word not in ("--dataset", "gopro")]
    capsys.readouterr()
    main([*without, "ssim_matlab_rgb"])
    assert "(paper)" not in capsys.readouterr().out
    assert record(place)["dataset"] == "gopro" and record(place)["metrics"].keys() >= {"psnr", "ssim_matlab_rgb"}
    cv2.imwrite("out/000.png", np.zeros((48, 64, 3), np.uint8))
    main([*without, "psnr"])
    assert record(place)["dataset"] is None


def test_scores_of_unknown_or_foreign_origin_are_not_taken_over(place, scored, capsys):
    main([*FAST, "psnr"])
    (place / "out_scores" / "scores.json").write_text("[1")
    scored.clear()
    main([*FAST, "psnr"])
    assert len(scored) == 5
    (place / "out_scores" / "scores.csv").write_text("my,own,table\n1,2,3\n")
    refused(*FAST, "psnr")
    assert "out_scores/scores.csv: not a table of scores" in capsys.readouterr().err
    assert (place / "out_scores" / "scores.csv").read_text() == "my,own,table\n1,2,3\n"


@pytest.fixture
def aligned(place):
    """Images large enough for ECC and NIQE; 001 is black, which nothing can be aligned to."""
    shutil.rmtree(place / "GoPro")
    make_pairs(place / "GoPro", train=0, test=2, size=(192, 200))
    for k in ("000", "001"):
        shutil.copy(place / f"GoPro/test/blur/{k}.png", place / "out" / f"{k}.png")
    for k in ("002", "003", "004"):
        (place / "out" / f"{k}.png").unlink()
    cv2.imwrite("out/001.png", np.zeros((192, 200, 3), np.uint8))
    return place


def test_an_image_that_cannot_be_aligned_is_counted_and_named(aligned, scored, capsys):
    main([*FAST, "aligned", "--dataset", "realblur_j"])
    with pytest.raises(AlignmentError):
        psnr_ssim_aligned(image(aligned, "out", "001"), image(aligned, "sharp", "001"))
    expected = psnr_ssim_aligned(image(aligned, "out", "000"), image(aligned, "sharp", "000"))
    scores = record(aligned)["metrics"]
    assert (scores["psnr_aligned"]["value"], scores["ssim_aligned"]["value"]) == pytest.approx(expected, abs=1e-9)
    assert scores["psnr_aligned"]["images"] == 1 and list(scores["psnr_aligned"]["failed"]) == ["001"]
    assert table(aligned)["001"]["psnr_aligned"].startswith("failed: ")
    assert "psnr_aligned leaves out 1 of 2 images that cannot be scored:\n    001: " in capsys.readouterr().out
    scored.clear()
    main([*FAST, "aligned", "--dataset", "realblur_j"])
    assert scored == [] and list(record(aligned)["metrics"]["psnr_aligned"]["failed"]) == ["001"]


def test_rwbi_is_niqe_alone_and_needs_no_sharp_images(aligned, capsys):
    main(["--pred", "GoPro/test/blur", "--dataset", "rwbi", "--workers", "1", "--device", "cpu", "--output", "rwbi"])
    scores = record(aligned, "rwbi")["metrics"]
    assert list(scores) == ["niqe_live"] and len(scores["niqe_live"]["how"]["model"]["sha256"]) == 64
    expected = [niqe(read_rgb(path)) for path in sorted((aligned / "GoPro/test/blur").iterdir())]
    assert scores["niqe_live"]["value"] == pytest.approx(statistics.fmean(expected), rel=1e-12)
    out = capsys.readouterr().out
    assert "niqe_live is not the paper's NIQE" in out and re.search(r"Blurred \(paper\) +– +3.546", out)
    main(["--pred", "GoPro/test/blur", "--metrics", "niqe", "--workers", "1", "--output", "own"])
    assert record(aligned, "own")["metrics"] == scores and record(aligned, "own")["dataset"] is None
    refused("--pred", "out", "--dataset", "rwbi", "--metrics", "psnr")
    assert "RWBI has no sharp images" in capsys.readouterr().err


def test_a_missing_model_of_niqe_costs_its_column_alone(place, capsys):
    main([*FAST, "psnr", "niqe", "--niqe_model", "nowhere.mat"])
    scores = record(place)["metrics"]
    assert scores["psnr"]["value"] > 0 and "nowhere.mat" in scores["niqe_matlab"]["not_measured"]
    out = capsys.readouterr().out
    assert "model = niqeModel;" in out and "niqe_live needs neither" in out
    assert re.search(r"this run .* not measured  ", out)
    Path("wrong.npz").write_bytes(b"no model")
    refused(*FAST, "niqe", "--niqe_model", "wrong.npz")
    assert "wrong.npz" in capsys.readouterr().err


class Distance:
    """In a network's place: the mean difference."""

    facts = {"backbone": {"file": "made up", "sha256": "0" * 64}}

    def __call__(self, restored, sharp):
        return float(np.abs(restored.astype(float) - sharp).mean())

    def batch(self, restored, sharp):
        assert len({one.shape for one in (*restored, *sharp)}) == 1
        return [self(*pair) for pair in zip(restored, sharp, strict=True)]


@pytest.fixture
def features(monkeypatch):
    """Colours of a coarse grid in place of Inception's features; returns how many images were asked for."""
    asked = []

    def coarse(paths, *_, **__):
        asked.extend(paths)
        return np.stack(
            [cv2.resize(read_rgb(path), (4, 4), interpolation=cv2.INTER_AREA).ravel() for path in paths]
        ).astype(np.float64)

    monkeypatch.setattr(set_level, "inception_features", coarse)
    monkeypatch.setattr(run, "inception", lambda *_: SimpleNamespace(facts={"backbone": "a coarse grid"}))
    return asked, coarse


def use_network(monkeypatch, make):
    """What `make` returns takes the place of every network."""
    load = Metric.load
    monkeypatch.setattr(Metric, "load", lambda self, **how: make() if self.is_network else load(self, **how))


def test_a_second_evaluation_into_the_same_folder_is_refused(place, monkeypatch, capsys):
    """POSIX locks do not exclude their own process, so the second one is another process."""
    main([*FAST, "psnr"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place / "out_scores" / ".lock")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        refused(*FAST, "ssim_matlab_rgb")
        holder.stdin.close()
    assert "out_scores is in use by another run" in capsys.readouterr().err
    main([*FAST, "ssim_matlab_rgb"])
    assert {"psnr", "ssim_matlab_rgb"} <= record(place)["metrics"].keys()


def test_networks_run_one_by_one_here_and_in_batches_on_a_gpu(place, monkeypatch):
    use_network(monkeypatch, Distance)
    main([*FAST, "lpips", "psnr"])
    scores = record(place)["metrics"]["lpips_alex"]
    expected = {name: float(row["lpips_alex"]) for name, row in table(place).items()}
    assert scores["value"] == pytest.approx(statistics.fmean(expected.values())) and scores["how"]["backbone"]
    cv2.imwrite("out/002.png", np.zeros((30, 40, 3), np.uint8))
    cv2.imwrite("GoPro/test/sharp/002.png", np.full((30, 40, 3), 7, np.uint8))
    samples = run.find_samples(Path("out"), [Path("GoPro/test/sharp")], None, True).samples
    tasks = [(one, ["lpips_alex"]) for one in samples]
    batched = dict(per_image.score_on_gpu(tasks, {"lpips_alex": Distance()}, workers=2))
    assert list(batched) == list(expected)  # in order, over a change of size
    assert {name: one["lpips_alex"] for name, one in batched.items()} == expected | {"002": 7.0}


def test_offline_the_rest_of_the_table_is_made_and_the_reason_is_printed_once(place, features, monkeypatch, capsys):
    def offline(*_):
        raise DownloadError("alexnet.pth cannot be downloaded; put it at cache/alexnet.pth")

    use_network(monkeypatch, offline)
    monkeypatch.setattr(run, "inception", offline)
    main([*FAST, "psnr", "lpips", "fid", "kid"])
    scores = record(place)["metrics"]
    assert scores["psnr"]["value"] > 0
    for name in ("lpips_alex", "fid", "fid_over_blurred", "kid", "kid_over_blurred"):
        assert "put it at cache/alexnet.pth" in scores[name]["not_measured"]
    out = capsys.readouterr().out
    assert out.count("alexnet.pth cannot") == 1
    row = next(line for line in out.splitlines() if line.startswith("this run"))
    assert row.count("not measured") == 5


def test_fid_and_kid_raw_and_over_the_blurred_inputs_with_both_bounds(place, features):
    asked, coarse = features
    main([*FAST, "fid", "kid"])
    sets = {
        kind: coarse(sorted(Path(folder).iterdir()))
        for kind, folder in (("restored", "out"), ("sharp", "GoPro/test/sharp"), ("blurred", "GoPro/test/blur"))
    }
    scores = record(place)["metrics"]
    for name, distance in (("fid", frechet_distance), ("kid", lambda a, b: kernel_distance(a, b, seed=0))):
        values = {kind: distance(sets[kind], sets["sharp"]) for kind in sets}
        assert scores[name]["value"] == pytest.approx(values["restored"], rel=1e-9)
        assert scores[name]["bounds"] == pytest.approx(
            {"sharp_against_sharp": values["sharp"], "blurred_against_sharp": values["blurred"]}, rel=1e-9
        )
        assert scores[f"{name}_over_blurred"]["value"] == pytest.approx(values["restored"] / values["blurred"])
    asked.clear()
    shutil.copy("out/000.png", "out/001.png")
    main([*FAST, "fid", "kid"])
    assert [path.parts[0] for path in asked] == ["out"] * 5  # the other sets' features are kept
    assert record(place)["metrics"]["fid"]["value"] != scores["fid"]["value"]


def test_without_the_blurred_inputs_the_raw_scores_are_had(place, features):
    main([*FAST, "fid", "--gt", "GoPro/test/sharp"])
    scores = record(place)["metrics"]
    assert scores["fid"]["value"] >= 0 and scores["fid"]["bounds"]["blurred_against_sharp"] is None
    assert "give --gt the whole data set" in scores["fid_over_blurred"]["not_measured"]


def test_profiles_go_to_folders_and_tables_of_their_own(place, features, capsys):
    main([*FAST, "psnr", "fid"])
    main([*FAST, "psnr", "fid", "--profile", "whang"])
    assert set(record(place)["metrics"]) == {"psnr", "fid", "fid_over_blurred"}
    whang = record(place, "out_scores_whang")
    assert whang["profile"] == "whang" and set(whang["metrics"]) == {"psnr", "fid_whang", "fid_whang_over_blurred"}
    assert "(paper)" not in capsys.readouterr().out.partition("profile whang")[2]


@pytest.mark.parametrize("form, cell", [("markdown", "| **34.21** |"), ("latex", r"\textbf{34.21}")])
def test_other_formats_on_standard_output_alone(place, capsys, form, cell):
    main([*FAST, "psnr", "--format", form])
    out = capsys.readouterr().out
    assert cell in out and "scoring" not in out and "scores.csv" not in out


def test_what_made_the_images_is_recorded(place):
    weights = Path("results/tiny/models/best_XYScanNet_stage2.pth")
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), weights)
    make_config(place, stage=2)
    shutil.copy("configs/tiny/config_stage2.yaml", "results/tiny/config_stage2.yaml")
    predict("gopro", ["--job_name", "tiny", "--device", "cpu", "--limit", "2", "--input", "GoPro"])
    predicted = record(place, "results/tiny/images_scores")
    main(["--pred", "results/tiny/images", *TASK[2:], "--metrics", "psnr", "--partial", "--workers", "1"])
    scores = record(place, "results/tiny/images_scores")
    assert scores["metrics"] == predicted["metrics"] and scores["made_by"] == predicted["made_by"]
    assert scores["made_by"]["weights"] == str(weights) and len(scores["made_by"]["weights_sha256"]) == 64
    assert scores["config"]["data"]["patch_size"] == 32 and scores["made_by"]["tile"] is None
    assert scores["images"]["scored"] == 2 and scores["images"]["missing"] == ["002", "003", "004"]


def test_the_predict_scripts_evaluate_when_asked(place, features, monkeypatch, capsys):
    use_network(monkeypatch, Distance)
    weights = Path("best.pth")
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), weights)
    arguments = ["--job_name", "tiny", "--weights", "best.pth", "--device", "cpu", "--input", "GoPro"]
    predict("gopro", [*arguments, "--output", "made", "--evaluate"])
    scores = record(place, "made_scores")
    assert scores["images"]["scored"] == 5 and scores["metrics"]["lpips_alex"]["images"] == 5
    assert "Table 1. GoPro, profile paper" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--workers", "0"), "--workers must be at least 1"),
        (("--gt", "a", "b", "c"), "--gt takes one folder or two, got 3"),
        (("--gt", "nowhere"), "nowhere: no such folder"),
        (("--pred", "nowhere"), "nowhere: no such folder of restored images"),
        (("--metrics", "niqqe"), "invalid choice: 'niqqe'"),
        (("--dataset", "kohler"), "invalid choice: 'kohler'"),
    ],
)
def test_impossible_commands_say_what_is_wrong(place, capsys, arguments, complaint):
    refused(*TASK, *arguments)
    assert complaint in capsys.readouterr().err


def test_an_equal_image_scores_infinitely_well(place):
    shutil.copy("GoPro/test/sharp/000.png", "out/000.png")
    main([*FAST, "psnr"])
    assert math.isinf(record(place)["metrics"]["psnr"]["value"]) and table(place)["000"]["psnr"] == "inf"


@pytest.mark.skipif(
    not {"XYSCANNET_OUTPUTS", "XYSCANNET_GOPRO"} <= os.environ.keys(),
    reason="needs restored GoPro test images (XYSCANNET_OUTPUTS) and the data set (XYSCANNET_GOPRO)",
)
def test_real_outputs_stand_beside_fftformers_row(place, capsys):
    main(
        [
            "--pred",
            os.environ["XYSCANNET_OUTPUTS"],
            "--gt",
            os.environ["XYSCANNET_GOPRO"],
            "--dataset",
            "gopro",
            "--metrics",
            *SIMPLE,
            "niqe",
            "--partial",
            "--output",
            "real",
        ]
    )
    out = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{out}")
    assert "FFTformer (paper)" in out and record(place, "real")["metrics"]["psnr"]["value"] > 20


def test_images_are_not_compared_with_themselves(place, capsys):
    main([*FAST, "psnr"])
    before = (place / "out_scores/scores.csv").read_bytes()
    sharp = str(place / "GoPro/test/sharp")
    with pytest.raises(SystemExit) as stop:
        main(["--pred", sharp, "--gt", sharp, "--dataset", "gopro", "--metrics", "psnr", "--output", "out_scores"])
    assert stop.value.code == 2 and "5 restored images are the sharp ones themselves" in capsys.readouterr().err
    assert (place / "out_scores/scores.csv").read_bytes() == before


def test_a_link_to_another_samples_sharp_image_is_refused(place, capsys):
    Path("out/003.png").unlink()
    os.link("GoPro/test/sharp/001.png", "out/003.png")
    refused(*FAST, "psnr")
    assert "1 restored images are the sharp ones themselves, the first 003" in capsys.readouterr().err
    assert not (place / "out_scores").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "foreign", "flipped"])
def test_damaged_features_are_computed_again(place, features, caplog, content):
    asked, _ = features
    main([*FAST, "fid"])
    before = record(place)["metrics"]["fid"]["value"]
    file = place / "out_scores" / "features_sharp.npz"
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 255
    file.write_bytes(flipped if content is None else content)
    asked.clear()
    main([*FAST, "fid"])
    assert {path.parent.name for path in asked} == {"sharp"} and len(asked) == 5
    assert record(place)["metrics"]["fid"]["value"] == before and "features_sharp.npz" in caplog.text


@pytest.mark.parametrize("lie", ["nan", "inf", "448.0", "12"])
def test_a_score_that_was_edited_is_measured_again(place, scored, lie):
    main([*FAST, "psnr"])
    file = place / "out_scores" / "scores.csv"
    before = file.read_bytes()
    lines = file.read_text().splitlines()
    lines[2] = ",".join([*lines[2].split(",")[:-1], lie])
    file.write_text("\n".join(lines) + "\n")
    scored.clear()
    main([*FAST, "psnr"])
    assert len(scored) == 1 and file.read_bytes() == before


@pytest.mark.parametrize("row", [b"\xff\xfe", b"000," + b"x" * 200_000, b"\0"], ids=["no text", "too long", "null"])
def test_a_damaged_row_is_measured_again(place, scored, caplog, row):
    main([*FAST, "psnr"])
    file = place / "out_scores" / "scores.csv"
    before = file.read_bytes()
    lines = before.splitlines()
    file.write_bytes(b"\n".join([*lines[:2], row, *lines[3:], b""]))
    scored.clear()
    main([*FAST, "psnr"])
    assert [name for name, _ in scored] == ["001"] and file.read_bytes() == before
    assert "scores.csv: 1 rows are not as they were written" in caplog.text


def test_a_record_that_is_nested_too_deep_is_as_none(place, scored, caplog):
    main([*FAST, "psnr"])
    (place / "out_scores" / "scores.json").write_text("[" * 100_000)
    scored.clear()
    main([*FAST, "psnr"])
    assert len(scored) == 5 and record(place)["complete"] and "scores.json" in caplog.text


def test_a_record_of_a_prediction_that_is_nested_too_deep_is_named(place, capsys):
    Path("out.json").write_text("[" * 100_000)
    refused(*FAST, "psnr")
    assert "error: out.json: " in capsys.readouterr().err


def test_other_metrics_stay_as_long_as_no_file_changes(place, features, scored, capsys):
    main([*FAST, *SIMPLE, "fid", "blurred_psnr"])
    everything = record(place)["metrics"]
    capsys.readouterr()
    scored.clear()
    main([*FAST, "psnr"])
    assert scored == [] and record(place)["metrics"] == everything
    assert "ssim_matlab" not in capsys.readouterr().out.partition("this run")[2]
    # As left by a version that noted the files in scores.csv alone.
    old = record(place)
    (place / "out_scores" / "scores.json").write_text(json.dumps({k: v for k, v in old.items() if k != "files"}))
    main([*FAST, "psnr"])
    assert scored == [] and record(place)["metrics"] == everything
    shutil.copy("out/001.png", "out/003.png")
    main([*FAST, "psnr"])
    metrics = record(place)["metrics"]
    assert metrics["psnr"]["value"] != everything["psnr"]["value"]
    assert all("value" not in metrics[name] for name in metrics if name != "psnr")
    scored.clear()
    main([*FAST, *SIMPLE])
    assert scored == [("003", SIMPLE[1:])]  # the other images' scores are still of use


def test_the_blurred_input_has_a_row_of_its_own(place, scored, capsys):
    main([*FAST, "psnr", "blurred_psnr"])
    blurred = [read_rgb(place / f"GoPro/test/blur/{k:03d}.png") for k in range(5)]
    expected = [psnr(one, image(place, "sharp", f"{k:03d}")) for k, one in enumerate(blurred)]
    assert record(place)["metrics"]["blurred_psnr"]["value"] == pytest.approx(statistics.fmean(expected))
    assert re.search(rf"blurred input .* {statistics.fmean(expected):.2f}", capsys.readouterr().out)
    shutil.copy("GoPro/test/sharp/000.png", "GoPro/test/blur/000.png")
    scored.clear()
    main([*FAST, "psnr", "blurred_psnr"])
    assert {columns for _, columns in scored} == {("blurred_psnr",)}
    assert math.isinf(record(place)["metrics"]["blurred_psnr"]["value"])
    main([*FAST, "psnr", "blurred_psnr", "--gt", "GoPro/test/sharp"])
    assert "give --gt the whole data set" in record(place)["metrics"]["blurred_psnr"]["not_measured"]


def test_any_two_folders_are_scored_without_the_paper(place, capsys):
    main(["--pred", "out", "--gt", "GoPro/test/sharp", "--metrics", "psnr", "--workers", "1", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "paper" not in out.replace("profile paper", "") and record(place)["dataset"] is None
    expected = np.mean([psnr(image(place, "out", f"{k:03d}"), image(place, "sharp", f"{k:03d}")) for k in range(5)])
    assert record(place)["metrics"]["psnr"]["value"] == pytest.approx(expected)
