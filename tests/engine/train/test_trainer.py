"""Real runs of the training scripts: resumed exactly, split over processes, stopped cleanly, guarded."""

import os
import shutil
import signal
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import load_config
from engine.console import readable_errors
from engine.train.data import worker_init
from engine.train.nan_check import NonFiniteError
from engine.train.optimizers import OPTIMIZERS
from engine.train.run import TrainingRun
from engine.train.schedule import cosine
from engine.train.signals import STOPPED, stop_requests
from engine.train.trainer import Trainer
from losses import DeblurLoss
from models import XYScanNet
from tests import workplace
from tests.workplace import make_config, make_pairs, make_vgg19, run, start, train, weights

STAGE1 = "train_XYScanNet_stage1.py"


@pytest.fixture
def place(tmp_path):
    make_pairs(tmp_path / "datasets" / "GoPro")
    make_config(tmp_path)
    return tmp_path


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def largest_difference(a: dict, b: dict) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_a_run_learns_scores_and_leaves_everything_behind(place):
    out = run(
        place,
        STAGE1,
        "--job_name",
        "tiny",
        "model.num_blocks=[1,1,1]",
        "train.epochs=6",
        "train.validate_every=3",
        "train.snapshot_every=4",
        "train.ema_decay=0.5",
        "data.workers=2",
        "data.cache=memmap",
    )
    results = place / "results" / "tiny"
    assert {path.name for path in (results / "models").iterdir()} == {
        f"{kind}_XYScanNet_stage1.pth" for kind in ("best", "final", "last", "previous_last", "epoch4")
    }
    assert "epoch 3: validation PSNR" in out and "epoch 6/6  step 8/8" in out and "(3 images)" in out
    assert "Exception ignored" not in out  # by a reader at its end
    assert "epoch 6/6" in (results / "train_stage1.log").read_text()
    record = (results / "config_stage1.yaml").read_text()
    assert "# git:" in record and "seed: 666" in record and "ema_decay: 0.5" in record
    assert list((results / "logs" / "stage1").glob("events.*"))
    assert len(list((place / "datasets" / ".cache").glob("*.rgb"))) == 2
    state = torch.load(results / "models" / "last_XYScanNet_stage1.pth", weights_only=True)
    average = {name.removeprefix("module."): value for name, value in state["ema_state"].items()}
    average.pop("n_averaged")
    assert equal(average, weights(place))


def test_the_recipes_pixel_term_is_the_one_trained_with(place, monkeypatch):
    monkeypatch.chdir(place)
    overrides = ["loss.pixel=mse", "loss.edge_weight=0", "train.epochs=1"]
    Trainer(TrainingRun(load_config("tiny", 1, overrides), "cpu")).fit()
    logged = EventAccumulator("results/tiny/logs/stage1").Reload()
    assert logged.Scalars("train/mse")[-1].value == logged.Scalars("train/loss")[-1].value
    assert "train/edge" not in logged.Tags()["scalars"]


def trainer(*overrides: str) -> Trainer:
    return Trainer(TrainingRun(load_config("tiny", 1, ["data.val=null", "train.epochs=null", *overrides]), "cpu"))


def test_the_logged_learning_rate_is_the_steps_own(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("engine.train.trainer.LOG_EVERY", 1)
    trainer("train.iterations=4", "optim.lr=1e-3", "optim.min_lr=0").fit()
    logged = EventAccumulator("results/tiny/logs/stage1").Reload().Scalars("train/learning rate")
    assert [point.step for point in logged] == [1, 2, 3, 4]
    assert [point.value for point in logged] == pytest.approx([cosine(k, 4, 1e-3, 0) for k in range(4)])


def test_weights_without_a_state_are_kept(place):
    """Released ones, put there to be restored with, or a run's whose state was deleted."""
    models = place / "results" / "tiny" / "models"
    kept = {}
    for seed in (1, 2):
        train(place, "--job_name", "tiny", "train.epochs=1", f"train.seed={seed}")
        for path in models.glob("*last_*"):
            path.unlink()
        for kind in ("best", "final"):
            kept[f"earlier{seed}_{kind}_XYScanNet_stage1.pth"] = weights(place, kind=kind)
    assert "kept as earlier3_" not in train(place, "--job_name", "tiny", "train.epochs=1")
    for name, state in kept.items():
        assert equal(torch.load(models / name, weights_only=True), state), name


def test_a_run_killed_at_a_snapshot_still_leaves_it(place, monkeypatch):
    """The state is written after it: once the state of its step is there, the snapshot is not due again."""
    monkeypatch.chdir(place)

    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer("train.iterations=4", "train.snapshot_every=1").fit()
    assert [path.name for path in Path("results/tiny/models").iterdir()] == ["epoch1_XYScanNet_stage1.pth"]


@pytest.fixture
def fused_adam(monkeypatch):
    """Adam as on a GPU: it skips a step by itself. PyTorch has a fused one for the CPU, too."""
    monkeypatch.setitem(
        OPTIMIZERS, "adam", lambda network, lr: torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    )


class Waits(TorchDispatchMode):
    """Counts where the host reads a number of a tensor, for which it would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(place, monkeypatch, fused_adam):
    monkeypatch.chdir(place)
    make_vgg19(place)
    step = trainer("train.iterations=3", "loss.contrast_weight=0.05")
    for _ in range(2):
        with Waits() as waits:
            terms = step.train_step([next(step.batches)])
        assert waits.count == 0
    with Waits() as waits:
        float(terms["loss"])
    assert waits.count == 1


def bad_loss(monkeypatch, step: int, batch: torch.Tensor) -> None:
    """Make the loss of one batch infinite, while its gradient stays finite."""
    forward = DeblurLoss.forward

    def infinite(self, restored, sharp, *rest):
        total, terms = forward(self, restored, sharp, *rest)
        infinite = torch.equal(sharp, batch.float() / 255 - 0.5)
        return (total + float("inf"), {**terms, "bad": total + float("inf")}) if infinite else (total, terms)

    monkeypatch.setattr(DeblurLoss, "forward", infinite)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_is_never_applied_and_neither_are_those_after_it(place, monkeypatch, request, fused):
    if fused:
        request.getfixturevalue("fused_adam")
    monkeypatch.chdir(place)
    make_config(place, "tiny", data={"batch_size": 1}, optim={"cosine_length": 10})
    good = trainer("train.iterations=2")
    good.fit()
    shutil.rmtree("results")

    bad = trainer("train.iterations=10")
    (_, sharp), names = bad.data.read(2)[0], bad.data.names(2, 0)
    bad_loss(monkeypatch, 2, sharp)
    with pytest.raises(NonFiniteError, match="step 2: .*the loss's term bad; images " + names[0]):
        bad.fit()
    assert bad.run.iteration == (5 if fused else 2)  # found out where it is logged, at the end of the epoch; at once
    assert equal(bad.network.state_dict(), good.network.state_dict())
    assert not list(Path("results/tiny").glob("models/*"))
    kept = torch.load("results/tiny/nonfinite_stage1_rank0.pt", weights_only=True)
    assert kept["iteration"] == 2 and kept["names"] == names


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_ends_bit_for_bit_the_same(place, tmp_path_factory):
    overrides = [
        "--job_name",
        "tiny",
        "--device",
        "cpu",
        "train.epochs=12",
        "train.validate_every=4",
        "train.ema_decay=0.9",
        "data.workers=1",
    ]
    train(place, *overrides)
    undisturbed, best = weights(place), weights(place, kind="best")

    (place / "results").rename(tmp_path_factory.mktemp("undisturbed") / "results")
    last = place / "results" / "tiny" / "models" / "last_XYScanNet_stage1.pth"
    kills = 0
    for delay in (0.0, 0.1, 0.05, 0.02):  # after a new state has been seen: during steps, saves, scoring
        process = start(place, STAGE1, *overrides)
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > before):
            time.sleep(0.005)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 3
    out = train(place, *overrides)
    assert "resuming from" in out
    assert equal(weights(place), undisturbed) and equal(weights(place, kind="best"), best)


@pytest.mark.slow
def test_two_processes_and_accumulation_give_the_parameters_of_one_and_two_its_validation(place):
    """In float64, with the contrast term, whose mask differs from share to share."""
    make_vgg19(place)
    sharp, blurred = (place / "datasets/GoPro/train" / kind / "000.png" for kind in ("sharp", "blur"))
    blurred.write_bytes(sharp.read_bytes())  # a pair without blur
    overrides = ["data.patch_size=16", "train.precision=fp64", "loss.contrast_weight=0.05", "train.epochs=2"]
    for job in ("one", "two", "micro"):
        make_config(place, job, model={"num_blocks": [1, 1, 1]})
    outs = [
        train(place, "--job_name", "one", *overrides),
        run(place, STAGE1, "--job_name", "two", "--device", "cpu", *overrides, processes=2),
    ]
    train(place, "--job_name", "micro", *overrides, "train.accumulate=4", "data.val=null")
    lines = [[line for line in out.splitlines() if "validation PSNR" in line] for out in outs]
    assert lines[0] == lines[1] and "(3 images)" in lines[0][0]  # every image counts once
    one = weights(place, "one")
    assert largest_difference(one, weights(place, "two")) < 1e-9
    assert largest_difference(one, weights(place, "micro")) < 1e-9
    for change in ("train.seed=1", "optim.name=muon"):  # other images, another optimiser's state
        out = train(place, "--job_name", "one", *overrides, change, code=2)
        assert f"was made with {change.split('=')[0]} " in out


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_request_to_stop_saves_and_ends_cleanly_and_the_run_goes_on(place, number):
    """Sent to the whole group of processes, as a terminal and Slurm do: the data workers must outlive it too."""
    arguments = [
        "--job_name",
        "tiny",
        "train.epochs=5000",
        "train.save_every=5000",
        "train.validate_every=5000",
        "data.workers=2",
    ]
    process = start(place, STAGE1, *arguments, output=subprocess.PIPE, start_new_session=True)
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    os.killpg(process.pid, number)
    rest = process.stderr.read()
    assert process.wait() == STOPPED and f"stopped by {number.name}" in rest
    state = torch.load(place / "results/tiny/models/last_XYScanNet_stage1.pth", weights_only=True)
    assert state["iteration"] > 1 and not (place / "results/tiny/models/final_XYScanNet_stage1.pth").exists()
    mark = place / "results/tiny/.stopped_stage1"
    assert mark.exists()
    out = train(place, "--job_name", "tiny", "train.epochs=null", f"train.iterations={state['iteration'] + 1}")
    assert f"at step {state['iteration']} of" in out and not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_other_requests_to_stop_are_noted_and_their_readers_ignore_them(number):
    with stop_requests() as request:
        assert request.reason is None
        signal.raise_signal(number)
        assert request.reason == number.name
    reader = get_context("fork").Process(target=raise_as_a_reader, args=(number,))
    reader.start(), reader.join()
    assert reader.exitcode == 0


def raise_as_a_reader(number: int) -> None:
    worker_init(0)
    signal.raise_signal(number)


def test_stage_2_starts_from_stage_1s_final_weights(place):
    make_config(place, stage=2, train={"epochs": None, "iterations": 1}, optim={"lr": 1e-12, "min_lr": 0.0})
    out = train(place, "--job_name", "tiny", stage=2, code=2)
    assert (
        "final_XYScanNet_stage1.pth: these initial weights are missing; run stage 1 first" in out
        and "Traceback" not in out
    )
    stage1 = ["data.val=null", "train.epochs=null"]
    train(place, "--job_name", "tiny", *stage1, "train.iterations=1")
    out = train(place, "--job_name", "tiny", stage=2)
    assert "starting from results/tiny/models/final_XYScanNet_stage1.pth" in out
    assert largest_difference(weights(place), weights(place, stage=2)) < 1e-9
    assert "not the weights that this run started from" not in train(place, "--job_name", "tiny", stage=2)
    best = "results/tiny/models/best_XYScanNet_stage2.pth"
    train(place, "--job_name", "tiny", *stage1, "train.iterations=2")  # it goes on
    out = train(place, "--job_name", "tiny", "train.iterations=2", stage=2)
    assert "final_XYScanNet_stage1.pth: not the weights that this run started from" in out
    out = train(place, "--job_name", "tiny", "train.iterations=3", f"train.start_from={best}", stage=2)
    assert f"{best}: not the weights that this run started from" in out


def test_a_damaged_newest_state_falls_back_to_the_one_before(place):
    train(place, "--job_name", "tiny", "train.epochs=4")
    models = place / "results" / "tiny" / "models"
    (models / "last_XYScanNet_stage1.pth").write_bytes(b"cut short")
    out = train(place, "--job_name", "tiny", "train.epochs=4")
    assert "last_XYScanNet_stage1.pth is damaged" in out
    assert "resuming from" in out and "at step 4 of 5" in out


def test_a_number_that_is_none_stops_the_run_and_names_the_module(place):
    state = XYScanNet(8, (0, 0, 1)).state_dict()
    state["decoder_level3.0.intra.mamba.in_proj.weight"][:] = 3e38  # finite, but its products are not
    torch.save(state, place / "bad.pth")
    make_config(place, "bad", stage=1)
    out = train(place, "--job_name", "bad", "train.start_from=bad.pth", code=2)
    assert "not finite" in out and "the output of decoder_level3.0.intra" in out
    kept = torch.load(place / "results" / "bad" / "nonfinite_stage1_rank0.pt", weights_only=True)
    assert kept["blurred"].shape == (4, 3, 32, 32) and len(kept["names"]) == 4 and kept["iteration"] == 0


def test_an_unexpected_error_ends_the_run_although_its_readers_ignore_signals(place):
    (place / "broken.py").write_text(
        f"import sys; sys.path.insert(0, {str(workplace.ROOT)!r})\n"
        "import losses\n"
        "def fail(*_, **__): raise RuntimeError('nobody expected this')\n"
        "losses.DeblurLoss.forward = fail\n"
        "import train_XYScanNet_stage1\n"
        "train_XYScanNet_stage1.main()\n"
    )
    out = run(place, str(place / "broken.py"), "--job_name", "tiny", "data.workers=2", code=1)
    assert "nobody expected this" in out


def test_muon_trains_and_resumes_bit_for_bit(place):
    overrides = [
        "optim.name=muon",
        "model.num_blocks=[1,1,1]",
        "model.unshuffle=2",
        "data.val=null",
        "train.epochs=null",
    ]
    make_config(place, "whole"), make_config(place, "parts")
    train(place, "--job_name", "whole", *overrides, "train.iterations=4", "optim.cosine_length=4")
    for iterations in (2, 4):
        train(place, "--job_name", "parts", *overrides, f"train.iterations={iterations}", "optim.cosine_length=4")
    assert equal(weights(place, "whole"), weights(place, "parts"))


def test_bfloat16_trains(place):
    one_step = ["data.val=null", "train.epochs=null", "train.iterations=1"]
    train(place, "--job_name", "tiny", "train.precision=bf16", *one_step)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in weights(place).values())


def test_dry_run_says_what_would_happen_and_writes_nothing(place):
    out = train(place, "--job_name", "tiny", "--dry_run")
    for words in ("patch_size: 32", "5 training pairs, 3 validation pairs", "3 iterations of 4 images"):
        assert words in out
    assert not (place / "results").exists()


@pytest.mark.parametrize(
    "mistake, words",
    [
        (["data.patchsize=32"], "command line: data.patchsize: unknown key; did you mean patch_size?"),
        (["data.batch_size=3", "train.accumulate=2"], "data.batch_size: 3 images cannot be shared equally"),
        (["data.batch_size=7", "train.accumulate=3"], "1 processes x 3 micro-batches (train.accumulate); use 6 or 9"),
        (["data.batch_size=2", "train.accumulate=3"], "use 3\n"),
        (["data.train=nowhere"], "nowhere"),
        (["model.scan_backend=mamba_ssm"], "scan backend mamba_ssm cannot run"),
        (["data.patch_size=64"], "smaller than the patch of 64"),
        (["--device", "cuda"], "no CUDA device"),
        (["loss.contrast_weight=1", "TORCH_OFFLINE"], "loss.contrast_weight=0"),
    ],
)
def test_mistakes_are_one_clear_line(place, mistake, words, monkeypatch):
    if "TORCH_OFFLINE" in mistake:
        mistake = mistake[:1]
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("TORCH_HOME", str(place / "cache"))
    if "cuda" in mistake and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    out = train(place, "--job_name", "tiny", *mistake, code=2)
    assert words in out and "Traceback" not in out


def test_a_truncated_image_stops_at_the_start(place):
    image = place / "datasets/GoPro/train/sharp/002.png"
    image.write_bytes(image.read_bytes()[:-20])
    out = train(place, "--job_name", "tiny", code=2)
    assert "train/sharp/002.png" in out and "Traceback" not in out and "epoch" not in out


def test_a_cache_that_does_not_fit_is_one_clear_line(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(SystemExit), readable_errors():
        Trainer(TrainingRun(load_config("tiny", 1, ["data.cache=memmap"]), "cpu")).fit()
    assert "make room" in capsys.readouterr().err


def test_recipes_of_the_repository_are_valid():
    configs = workplace.ROOT / "configs"
    stages = sorted(configs.rglob("config_stage*.yaml"))
    assert len(stages) >= 9
    for path in stages:
        job_name = str(path.parent.relative_to(configs))
        assert load_config(job_name, int(path.stem[-1])).job_name == job_name
