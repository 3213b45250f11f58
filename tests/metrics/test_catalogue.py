"""The list of metrics: every name is one thing, and every function is there."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.catalogue import FLAGS, METRICS, PROFILES, SET, column_names
from metrics.paper import paper_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", METRICS)
def test_every_function_is_there(name):
    metric = METRICS[name]
    module, _, function = metric.function.partition(":")
    assert callable(getattr(importlib.import_module(f"metrics.{module}"), function))
    assert metric.name == name and metric.definition and metric.flag in FLAGS
    assert metric.baseline_of is None or METRICS[metric.baseline_of].function == metric.function
    assert set(metric.images) <= {"restored", "sharp", "blurred"}


def test_metrics_of_one_function_differ():
    calls = [
        (m.function, m.part, m.arguments, m.images, m.scale, m.over_blurred, *m.only.items()) for m in METRICS.values()
    ]
    assert len(set(calls)) == len(calls)


def test_every_column_of_the_papers_tables_has_a_metric():
    words = [metric.paper for metric in METRICS.values() if metric.paper]
    assert len(set(words)) == len(words)
    for table in ("gopro", "hide", "rwbi", "realblur_j", "realblur_r"):
        assert set(next(iter(paper_table(table).values()))) <= set(words)


def test_no_name_stands_for_two_things():
    sets = [{name for name in column_names(FLAGS, profile) if METRICS[name].kind == SET} for profile in PROFILES]
    assert all(len(names) == 4 for names in sets) and sets[0].isdisjoint(sets[1])
    assert "niqe_live" in column_names(["niqe"]) and column_names(["niqe"], "paper", "model.mat") == ["niqe_matlab"]
    assert not {"niqe", "ssim", "lpips"} & METRICS.keys()


def test_the_list_imports_no_metric():
    code = "import sys, metrics.catalogue, datasets.catalogue; print({'torch', 'numpy', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_code_of_a_metric_is_what_it_imports_too():
    names = {name: [path.stem for path in METRICS[name].files] for name in ("psnr", "lpips_alex")}
    assert names["psnr"] == ["checks", "psnr"] and {"lpips", "perceptual", "downloads"} <= set(names["lpips_alex"])
