"""Tables 5 to 8: which runs are made, by which commands; failing, stopped, continued; averaged."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis import ablation, runs
from analysis.ablation import SEEDS, main
from analysis.quality import PAPER_SEEDS, Mean, quality_columns, run_remarks
from analysis.variants import TABLES
from engine.config import load_config, results_dir, save_config
from engine.demo import HELD_OUT
from engine.provenance import network_code
from metrics.paper import paper_table
from models.fusion import Skip
from models.registry import FUSIONS
from tests import forks
from tests.engine.evaluate.test_table import record
from tests.workplace import ROOT, make_pairs

# Stands in for the training, prediction and evaluation scripts: notes that it was called, and writes what they would.
STAND_IN = r"""
import json, os, signal, sys, time
from pathlib import Path

script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
value = dict(zip(arguments, arguments[1:]))
job = value.get("--job_name") or str(Path(value["--pred"]).parent.relative_to("results"))
folder, seed = Path("results") / job, int(job[-1])

def note(what):
    with open("calls.jsonl", "a") as file:
        call = {"script": script, "arguments": arguments, "job": job, "what": what, "time": time.monotonic(),
                "pid": os.getpid()}
        file.write(json.dumps(call) + "\n")

note("begins")
print("output of", script)
if script.startswith("train"):
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: (note("stopped"), sys.exit(75)))
    note("ready")
    while (until := os.environ.get("UNTIL")) and not Path(until).exists():
        time.sleep(0.02)
    if os.environ.get("FAILS") == job:
        print("error: no memory left", file=sys.stderr)
        sys.exit(2)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for kind in ("best", "final"):
        (folder / "models" / f"{kind}_XYScanNet_stage1.pth").write_text(job)
elif script == "evaluate.py":
    import hashlib  # not above: it takes a fifth of most calls' time

    names = ("psnr ssim_matlab_rgb ssim_per_channel niqe_live lpips_alex fid fid_over_blurred kid kid_over_blurred "
             "psnr_aligned ssim_aligned stlpips_alex").split()
    scores = {name: {"value": 30.0 + seed + k} for k, name in enumerate(names)}
    if missing := os.environ.get("MISSING"):
        scores[missing] = {"not_measured": "no network"}
    weights = (folder / "models" / "best_XYScanNet_stage1.pth").read_bytes()
    record = {"dataset": value["--dataset"], "profile": "paper", "complete": True, "metrics": scores,
              "images": {"scored": 3, "data_set": 3},
              "made_by": {"weights_sha256": hashlib.sha256(weights).hexdigest()}}
    scored = Path(value["--pred"] + "_scores")
    scored.mkdir(parents=True, exist_ok=True)
    (scored / "scores.json").write_text(json.dumps(record))
note("ends")
"""
TRAIN, PREDICT, EVALUATE = "train_XYScanNet_stage1.py", "predict_test_results.py", "evaluate.py"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the recipes, GoPro and HIDE, where stand-ins are run in the place of the scripts."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "ablation", tmp_path / "configs" / "ablation")
    make_pairs(tmp_path / "datasets" / "GoPro", train=1)
    make_pairs(tmp_path / "datasets" / "HIDE", train=0)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in (TRAIN, PREDICT, EVALUATE):
        (scripts / name).write_text(STAND_IN)
    monkeypatch.setattr(runs, "SCRIPTS", scripts)
    return tmp_path


def calls(place: Path, what: str = "begins") -> list[dict]:
    """The scripts' calls so far."""
    file = place / "calls.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [call for call in map(json.loads, lines) if call["what"] == what]


def when(condition: Callable[[], object], do: Callable[[], object]) -> threading.Thread:
    """A thread that waits for something and then does something."""

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        do()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def forget(place: Path) -> None:
    (place / "calls.jsonl").unlink()


def cells(printed: str, label: str) -> list[str]:
    """The figures of the first row with that label."""
    row = next(line for line in printed.splitlines() if re.match(rf"{re.escape(label)}  +", line))
    return re.split(r"  +", row)[1:]


# Which runs, and what is read from the paper


@pytest.mark.parametrize(
    "number, columns",
    [
        (5, {"gopro": ["KID", "FID", "LPIPS", "NIQE"], "hide": ["KID", "FID", "LPIPS", "NIQE"], "rwbi": ["NIQE"]}),
        (6, {"gopro": ["PSNR", "LPIPS"], "hide": ["PSNR", "LPIPS"]}),
        (7, {"gopro": ["PSNR"], "hide": ["PSNR"]}),
        (8, {"hide": ["NIQE", "LPIPS"], "rwbi": ["NIQE"], "realblur_j": ["ST-LPIPS"]}),
    ],
)
def test_every_row_of_the_paper_has_a_recipe_and_every_score_a_column(number, columns, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = TABLES[number]
    assert {word for word in paper_table(table.paper) if word != "Reference"} == table.rows.keys()
    assert quality_columns([number]) == columns
    models = {word: load_config(f"ablation/{job}@1", 1).model for word, job in table.rows.items()}
    assert len(set(models.values())) == len(models)
    assert load_config("ablation/xyscan", 1).model in models.values()


def test_the_quick_recipe_fits_every_row(monkeypatch):
    monkeypatch.chdir(ROOT)
    for job in {job for table in TABLES.values() for job in table.rows.values()}:
        config = load_config(f"ablation/{job}@quick-1", 1, ablation.QUICK_RECIPE)
        assert config.train.epochs is None and config.train.iterations < 1000 and config.model.dim < 48


def test_a_mean_prints_with_the_deviation_of_a_sample():
    values = [32.01, 32.11, 32.23, 32.4]
    assert f"{Mean(values):.2f}" == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert f"{Mean([0.125]):.3f}" == "0.125" and Mean(values) == pytest.approx(np.mean(values))
    assert len(SEEDS) == PAPER_SEEDS


# A table from beginning to end


def test_every_run_is_trained_and_scored_by_the_scripts_and_no_finished_one_again(place, capfd):
    assert main(["--table", "6", "data.cache=memmap"]) == 0
    made = calls(place)
    assert [call["job"] for call in made if call["script"] == TRAIN] == [
        f"ablation/{row}@{seed}" for seed in SEEDS for row in ("bidirectional", "xyscan")
    ]
    results = "results/ablation/bidirectional@1"
    weights = f"{results}/models/best_XYScanNet_stage1.pth"
    job = ["--job_name", "ablation/bidirectional@1"]
    assert [[call["script"], *call["arguments"]] for call in made[:5]] == [
        [TRAIN, *job, "data.cache=memmap", "train.seed=1"],
        *(
            command
            for key, images, folder in (("gopro", "images", "datasets/GoPro"), ("hide", "images_hide", "datasets/HIDE"))
            for command in (
                [PREDICT, "--dataset", key, *job, "--weights", weights, "--input", folder],
                [EVALUATE, "--pred", f"{results}/{images}", "--dataset", key, "--gt", folder, "--niqe_model", "live"],
            )
        ),
    ]
    assert len(made) == 8 * 5

    printed = capfd.readouterr().out
    assert "run 3 of 8, ablation/bidirectional@2\n$ python train_XYScanNet_stage1.py --job_name" in printed
    assert f"output of {EVALUATE}" in printed
    table = (place / "results" / "ablation" / "table6.txt").read_text()
    assert table in printed and printed.rstrip().endswith("python -m analysis.complexity")
    assert "Table 6, GoPro. One direction or both" in table and "Table 6, HIDE. One direction or both" in table
    assert cells(table, "bidirectional (paper)") == ["*0.091*", "32.10"]
    deviation = np.std([1, 2, 3, 4], ddof=1)
    assert cells(table, "bidirectional") == [f"36.500 ± {deviation:.3f}", f"32.50 ± {deviation:.2f}"]
    assert "unidirectional: not comparable with the paper's rows: over 3 images" in table

    forget(place)
    assert main(["--table", "6", "data.cache=memmap"]) == 0
    assert not calls(place) and table in capfd.readouterr().out


@pytest.fixture
def mine(monkeypatch):
    """A fusion module registered under the name "mine"."""
    monkeypatch.setitem(FUSIONS, "mine", type("Mine", (Skip,), {}))


def test_a_researcher_s_own_variant_is_a_row(place, mine):
    assert main(["--table", "8", "--variants", "mine,klff", "--seeds", "1,2", "data.workers=0"]) == 0
    made = [[call["job"], *call["arguments"][2:]] for call in calls(place) if call["script"] == TRAIN]
    assert made == [
        ["ablation/xyscan@fusion=mine-1", "model.fusion=mine", "data.workers=0", "train.seed=1"],
        ["ablation/xyscan@1", "data.workers=0", "train.seed=1"],
        ["ablation/xyscan@fusion=mine-2", "model.fusion=mine", "data.workers=0", "train.seed=2"],
        ["ablation/xyscan@2", "data.workers=0", "train.seed=2"],
    ]
    hide = (place / "results/ablation/table8_variants.txt").read_text().split("Table 8, ")[1]
    labels = re.findall(r"^(\w.*?)  +\S.*  ", hide, re.MULTILINE)
    assert labels == ["none (paper)", "AFF (paper)", "KLFF (paper)", "mine", "klff"]
    assert cells(hide, "mine")[0] == f"35.500 ± {np.std([1, 2], ddof=1):.3f}"


def test_variants_without_a_table_stand_beside_all_rows_of_the_paper(place, mine):
    assert main(["--variants", "mine", "--seeds", "1"]) == 0
    gopro, hide, *_ = (place / "results/ablation/variants.txt").read_text().split("Tables 5 to 8, ")[1:]
    for part, papers in ((gopro, ["0.094", "–"]), (hide, ["0.121", "–"])):
        assert [cells(part, "MambaIR (paper)")[k].strip("*") for k in (2, 5)] == papers
        assert float(cells(part, "XYScanNet-S (paper)")[5].strip("*")) > 30
        assert len(cells(part, "mine")) == 6 and cells(part, "mine")[5] == "31.00"


def test_data_sets_that_are_missing_cost_their_own_columns_until_they_are_there(place, capfd):
    command = ["--table", "8", "--seeds", "2"]
    assert main(command) == 0
    printed = capfd.readouterr().out
    reason = "RWBI: datasets/RWBI: no such folder; unpack RWBI there"
    assert printed.index(f"not measured: {reason}") < printed.index("run 1 of 3")
    parts = (place / "results" / "ablation" / "table8.txt").read_text().split("Table 8, ")
    assert [part.split(".")[0] for part in parts[1:]] == ["HIDE", "RWBI", "RealBlur-J"]
    assert cells(parts[1], "KLFF") == ["36.000", "35.000", "not measured"]  # LPIPS, niqe_live, niqe_matlab
    assert cells(parts[2], "KLFF (paper)")[-1] == "*3.51*" and set(cells(parts[2], "KLFF")) == {"not measured"}
    assert reason in parts[2] and reason not in parts[1] and "RealBlur-J: datasets/RealBlur_J: no such" in parts[3]
    assert "AFF: runs finished and scored: 1, the paper's: 4." in parts[1]

    forget(place)
    make_pairs(place / "datasets" / "RWBI", train=0)
    assert main(command) == 0
    assert [call["script"] for call in calls(place)] == [PREDICT, EVALUATE] * 3
    assert "--gt" not in calls(place)[1]["arguments"]
    parts = (place / "results" / "ablation" / "table8.txt").read_text().split("Table 8, ")
    assert cells(parts[2], "AFF") == ["35.000", "not measured"]  # niqe_live is not the paper's


def test_a_score_that_could_not_be_had_is_tried_again(place, monkeypatch):
    monkeypatch.setenv("MISSING", "lpips_alex")
    command = ["--table", "6", "--seeds", "1"]
    assert main(command) == 0
    table = place / "results" / "ablation" / "table6.txt"
    assert cells(table.read_text(), "bidirectional") == ["not measured", "31.00"]
    assert "bidirectional: lpips_alex not measured: no network" in table.read_text()
    forget(place)
    monkeypatch.delenv("MISSING")
    assert main(command) == 0
    assert [call["script"] for call in calls(place)] == [EVALUATE] * 4
    assert cells(table.read_text(), "bidirectional") == ["35.000", "31.00"]


def test_scores_of_other_weights_do_not_count(place):
    command = ["--table", "7", "--seeds", "1"]
    assert main(command) == 0
    forget(place)
    (place / "results/ablation/intra@1/models/best_XYScanNet_stage1.pth").write_text("trained anew")
    assert main(command) == 0
    assert [(call["script"], call["job"]) for call in calls(place)] == [
        (script, "ablation/intra@1") for script in (PREDICT, EVALUATE, PREDICT, EVALUATE)
    ]


# What is refused before anything is made


def refused(arguments: list[str], capfd) -> str:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    return capfd.readouterr().err


def test_a_run_goes_on_with_its_own_recipe_alone(place, capfd):
    name = "ablation/xyscan@1"
    save_config(load_config(name, 1, ["train.seed=1"]), results_dir(name) / "config_stage1.yaml")
    message = refused(["--table", "6", "--seeds", "1", "train.epochs=5", "data.workers=0"], capfd)
    assert "ablation/xyscan@1 was started with another recipe" in message and "workers" not in message
    assert "train.epochs: 3000 then, 5 now" in message and not calls(place)
    assert main(["--table", "6", "--seeds", "1", "data.workers=0"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["data.batch_sise=8"], "did you mean batch_size"),
        (["--niqe_model", "model.mat"], "model.mat"),
        (["data.train=nowhere"], "data.train: nowhere: no such folder. Unpack the data set there"),
        (["data.val=null"], "data.val: must be given"),
        (["--variants", "yours"], "--variants: 'yours' is not a variant"),
        (["--variants", "model.fusion=yours"], "fusion: must be one of klff"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(place, capfd, arguments, message):
    assert message in refused(["--table", "5", *arguments], capfd)
    assert not calls(place)


def test_training_images_are_looked_for_as_training_does(place):
    """Sharp images alone, which are blurred or made noisy while training."""
    shutil.copytree("datasets/GoPro/test/sharp", "photographs")
    folders = "data.train=photographs", "data.val=photographs"
    runs.Run("ablation/xyscan@1", (*folders, "data.degradation=noise:25")).check(set())
    with pytest.raises(ValueError, match="data.train: photographs"):
        runs.Run("ablation/xyscan@1", folders).check(set())


# Failing and stopped


def test_one_runs_failure_does_not_keep_the_others(place, monkeypatch, capfd):
    monkeypatch.setenv("FAILS", "ablation/inter@1")
    assert main(["--table", "7", "--seeds", "1,2"]) == 1
    printed = capfd.readouterr()
    assert f"ablation/inter@1 is not finished: {TRAIN} ended with code 2" in printed.out
    assert "no memory left" in printed.err
    table = (place / "results" / "ablation" / "table7.txt").read_text()
    assert cells(table, "inter") == ["32.00"] and cells(table, "intra")[0].startswith("31.50 ± ")
    assert "inter: runs finished and scored: 1, the paper's: 4." in table


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_stops_the_training_cleanly_and_the_same_command_continues(place, monkeypatch, capfd, name):
    number = getattr(signal, name)

    def stop() -> None:
        os.kill(os.getpid(), number)
        if number == signal.SIGINT:  # a terminal sends it to the script as well
            os.kill(calls(place)[0]["pid"], number)

    monkeypatch.setenv("UNTIL", "never")
    before = signal.getsignal(number)
    watcher = when(lambda: calls(place, "ready"), stop)
    assert main(["--table", "7", "--seeds", "1"]) == 1
    watcher.join()
    assert signal.getsignal(number) is before
    printed = capfd.readouterr().out
    assert len(calls(place)) == 1 and len(calls(place, "stopped")) == 1
    assert "ablation/inter@1 is not finished: stopped" in printed
    assert "ablation/intra@1 is not finished: not reached" in printed
    monkeypatch.delenv("UNTIL")
    assert main(["--table", "7", "--seeds", "1"]) == 0


# The real scripts


@pytest.mark.slow
def test_the_whole_quick_path_runs_with_the_real_scripts(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # weights are not downloaded here
    monkeypatch.setenv("XYSCANNET_CACHE", "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shutil.copytree(ROOT / "configs" / "ablation", tmp_path / "configs" / "ablation")
    (tmp_path / "datasets" / "samples").mkdir(parents=True)
    for name in (*HELD_OUT, "cat"):
        shutil.copy(ROOT / "datasets" / "samples" / f"{name}.jpg", tmp_path / "datasets" / "samples")
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=forks.popen, DEVNULL=None))
    monkeypatch.setattr(ablation, "QUICK_PHOTOS", {"pairs_per_photo": 1, "size": 48, "strength": 3})
    command = "--table 6 --variants bidirectional --quick --seeds 1 data.patch_size=32 data.batch_size=1"
    command = [*command.split(), "data.workers=0", "train.iterations=2"]
    name = "ablation/bidirectional@quick-1"
    assert not runs.Run(name).is_trained()
    assert main(command) == 0
    printed = capfd.readouterr().out
    table = (tmp_path / "results" / "ablation" / "table6_variants_quick.txt").read_text()
    assert ablation.QUICK in table and table in printed and printed.count(f"$ python {TRAIN}") == 1
    assert cells(table, "bidirectional (paper)") == ["*0.091*", "32.10"]
    lpips, psnr = cells(table, "bidirectional")
    assert lpips == "not measured" and 10 < float(psnr) < 40
    record = json.loads((results_dir(name) / "images_hide_scores" / "scores.json").read_text())
    assert record["images"]["scored"] == 4 and record["config"]["model"]["scan"] == "bidirectional"
    assert runs.Run(name).is_trained()


@pytest.mark.parametrize("code, told", [(None, False), ("of an earlier network", True)])
def test_rows_of_other_code_than_there_is_now_are_told(code, told):
    made_by = {"network_code": code or network_code()}
    remarks = run_remarks({"mine": [record(psnr=1.0) | {"made_by": made_by}]}, {"psnr"})
    assert ("mine: restored by other code in models/ than there is now." in remarks) is told
