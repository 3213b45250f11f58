"""Each benchmark runs on the smallest sizes and prints a table of figures."""

import contextlib
import functools
import importlib
import io
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch

from benchmarks import growth, measure, prediction
from tests.benchmarks.rates import usual_rate
from tests.forks import Script
from tests.measurements import fork_measurements
from tests.workplace import ROOT, make_pairs

RATIO = r"\d+\.\d\dx"

pytestmark = pytest.mark.slow


@pytest.fixture
def known_rates(monkeypatch):
    """Large copies and products take seconds; test_measure.py measures them."""
    monkeypatch.setattr(measure, "copy_rate", usual_rate)
    monkeypatch.setattr(measure, "matmul_rate", usual_rate)


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    fork_measurements(monkeypatch)


def run(name: str, *arguments: str, code: int = 0) -> str:
    """What a benchmark prints; in this process, so that PyTorch is imported once for all measurements."""
    printed, status = io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", [name, *arguments, "--device", "cpu"])
    with argv, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except SystemExit as end:
            status = end.code
    assert (status or 0) == code, printed.getvalue()
    return printed.getvalue()


def rows(output: str, *words: str) -> list[list[str]]:
    """The lines that begin with ``words``, as what follows them."""
    start = re.compile(r"\s*" + r",?\s+".join(map(re.escape, words)) + r"\s")
    return [line[match.end() :].split() for line in output.splitlines() if (match := start.match(line))]


@pytest.mark.usefixtures("known_rates")
def test_network_is_compared_with_the_baseline():
    output = run(
        "network",
        *"--dim 8 --num_blocks 1 1 1 --size 16 20 --repeats 1 --backend torch".split(),
        *"--baseline_backend reference --precision fp32 bf16".split(),
    )
    assert "inference 1 x 3 x 16 x 20" in output and "training step 1 x 3 x 16 x 20" in output
    for words in (("baseline", "reference", "fp32"), ("ours", "torch", "fp32"), ("ours", "torch", "bf16")):
        assert len(found := rows(output, *words)) == 2, output
        for milliseconds, roofline, memory, _, *ratios in found:
            assert 0 <= float(roofline) < float(milliseconds) and float(memory) > 0  # rounded, tiny networks
            assert len(ratios) == 2 and all(re.fullmatch(RATIO, ratio) for ratio in ratios)
    assert all(len(rows(output, "ours streamed", "torch", precision)) == 1 for precision in ("fp32", "bf16"))
    assert [row[4:] for row in rows(output, "baseline", "reference", "fp32")] == [["1.00x", "1.00x"]] * 2


def test_network_refuses_a_size_that_the_baseline_cannot_take():
    assert "multiples of 4" in run("network", "--size", "18", code=2)


@pytest.mark.usefixtures("known_rates")
def test_vssm_compares_both_modules():
    line = "--channels 8 --size 8 12 --repeats 1 --backend torch --baseline_backend reference"
    output = run("vssm", *line.split())
    for title in (
        "Intra-VSSM, inference",
        "Intra-VSSM, forward+backward",
        "Inter-VSSM, inference",
        "Inter-VSSM, forward+backward",
    ):
        assert title in output
    assert (
        len(rows(output, "baseline", "reference", "fp32")) == len(found := rows(output, "ours", "torch", "fp32")) == 4
    )
    assert all(re.fullmatch(RATIO, ratio) for row in found for ratio in row[4:])


@pytest.mark.usefixtures("known_rates")
def test_scan_measures_rows_and_columns():
    output = run("scan", *"--sizes 252 --dims 2 --levels 3 --repeats 1 --backends reference torch mamba_ssm".split())
    assert torch.cuda.is_available() or "left out: scan backend mamba_ssm" in output
    for line in ("63 x 63 rows", "63 x 63 cols"):
        for name in ("forward", "forward+backward"):
            found = rows(output, "252 dim 2 level 3 " + line, name, "torch")
            assert len(found) == 1, output
            milliseconds, roofline, *_, times, mamba = found[0]
            assert 0 < float(roofline) < float(milliseconds)
            assert re.fullmatch(RATIO, times) and mamba == "-"


@pytest.mark.usefixtures("known_rates")
def test_scan_leaves_out_what_takes_too_long():
    output = run("scan", *"--sizes 720p --dims 2 --levels 1 --backends reference --limit 0.5".split())
    assert len(found := [line for line in output.splitlines() if line.startswith("720p")]) == 4
    assert all(line.split()[-1] == "-" for line in found)


def test_profiler_lists_the_costliest_operations():
    output = run("profiler", *"--case 256 --dim 8 --num_blocks 1 1 1 --rows 20".split())
    found = [rows(output, name)[0] for name in ("aten::mm", "aten::add")]
    assert all(
        0 < float(share.rstrip("%")) < 100 and time.endswith("s") and int(calls) > 0 for share, time, *_, calls in found
    )


def test_prediction_compares_streamed_and_tiled_images_with_full_ones(tmp_path):
    make_pairs(tmp_path, train=0, test=2, size=(40, 48))
    output = run("prediction", str(tmp_path / "test"), *"--dim 8 --size 40 48 --tile 24:8 --band 8 --repeats 1".split())
    assert [line.split("  ")[0] for line in output.splitlines() if line.startswith(("full", "streamed", "tiles"))] == [
        "full, fp32",
        "streamed, bands of 8, fp32",
        "tiles of 24, overlap 8, fp32",
    ]


def test_prediction_compares_bf16_with_fp32(monkeypatch):
    """On shaken photographs, with the shipped weights."""
    monkeypatch.setattr(prediction, "synthesize_photos", functools.partial(prediction.synthesize_photos, size=64))
    output = run("prediction", *"--precision fp32 bf16 --band --tile --images 1 --size 64 64 --repeats 1".split())
    (fp32,), (bf16,) = rows(output, "full", "fp32"), rows(output, "full", "bf16")
    assert fp32[4] == "inf" and 40 < float(bf16[4]) < 90
    assert abs(float(bf16[5]) - float(fp32[5])) < 0.1


def test_growth_fits_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(growth.NETWORKS, "S", (8, 1, (1, 1, 1)))
    output = run(
        "growth",
        *"--networks T --megapixels 0.004 0.008 0.016 --dims 8 --batches 1".split(),
        *("--output", str(tmp_path / "growth")),
    )
    assert re.search(r"memory = -?\d+\.\d\d GiB \+ \d+ bytes per pixel", output)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_peers_are_measured_beside_ours():
    pytest.importorskip("spandrel", reason="the package spandrel is not installed")
    output = run("peers", *"--sizes 32x24 --networks XYScanNet-T NAFNet-32 --repeats 1".split())
    for name in ("XYScanNet-T", "NAFNet-32"):
        assert len(found := rows(output, name)) == 1 and int(found[0][0].replace(",", "")) > 10**6


@pytest.mark.parametrize("arguments", [("metrics", "nowhere"), ("network", "--device", "nonsense")])
def test_bad_input_ends_in_a_line(arguments):
    with Script(["-m", f"benchmarks.{arguments[0]}", *arguments[1:]], ROOT, output=subprocess.PIPE) as script:
        errors = script.stderr.read()
    assert script.returncode == 2 and "Traceback" not in errors
    assert re.search(f"^error: .*{arguments[-1]}", errors, re.MULTILINE)
