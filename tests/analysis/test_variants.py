"""Variants by name: what they are, which runs they share, and what is refused."""

import subprocess
import sys

import pytest
import yaml

from analysis.variants import (
    TABLES,
    Variant,
    VariantError,
    find_variant,
    find_variants,
    paper_rows,
    recipe_variants,
    registered_variants,
)
from engine.config import ConfigError
from metrics.paper import paper_table
from models.fusion import Skip
from models.registry import FUSIONS, STATE_SPACES
from tests.workplace import ROOT


@pytest.fixture(autouse=True)
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setitem(FUSIONS, "mine", Skip)


@pytest.mark.parametrize(
    "name, job, overrides",
    [
        ("ss2d", "ablation/ss2d", ()),
        ("klff", "ablation/xyscan", ()),
        ("unidirectional", "ablation/xyscan", ()),
        ("none", "ablation/no_fusion", ()),
        ("model.kl_gate=elementwise", "ablation/elementwise", ()),
        ("mine", "ablation/xyscan", ("model.fusion=mine",)),
        ("loss.edge_weight=0.1", "ablation/xyscan", ("loss.edge_weight=0.1",)),
        ("xyscannet_t", "xyscannet_t", ()),
    ],
)
def test_a_name_is_a_recipe_a_value_a_job_or_a_key(mine, name, job, overrides):
    variant = find_variant(name)
    assert (variant.label, variant.job, variant.overrides) == (name, job, overrides)
    variant.config()


def test_the_same_network_by_two_names_is_one_variant(mine):
    assert [variant.label for variant in find_variants(["klff", "mine", "xyscan", "model.fusion=mine"])] == [
        "klff",
        "mine",
    ]


def test_runs_are_named_after_recipe_and_change():
    assert Variant("a", "ablation/ss2d").run_name("2") == "ablation/ss2d@2"
    variant = Variant("a", "ablation/xyscan", ("model.fusion=mine", "data.train=my/data set"))
    assert variant.run_name("quick-1") == "ablation/xyscan@fusion=mine-data.train=my_data_set-quick-1"


def test_registered_modules_show_up_by_name(mine, monkeypatch):
    monkeypatch.setitem(STATE_SPACES, "yours", Skip)
    assert [variant.label for variant in registered_variants("fusion", "vssm")] == ["mine", "yours"]
    monkeypatch.setitem(STATE_SPACES, "mine", Skip)
    labels = [variant.label for variant in registered_variants("fusion", "vssm")]
    assert labels == ["model.fusion=mine", "yours", "model.vssm=mine"]


@pytest.mark.parametrize(
    "name, error",
    [
        ("yours", VariantError),
        ("../configs/xyscannet_t", VariantError),
        ("model.fusion=yours", ConfigError),
        ("model.fusoin=klff", ConfigError),
        ("a=b", ConfigError),
    ],
)
def test_what_is_no_variant_is_refused(name, error):
    with pytest.raises(error, match="yours|configs|fus|a=b"):
        find_variant(name)


def test_a_name_of_two_modules_must_say_which(mine, monkeypatch):
    monkeypatch.setitem(STATE_SPACES, "mine", Skip)
    with pytest.raises(VariantError, match="model.fusion=mine"):
        find_variant("mine")
    assert find_variant("model.vssm=mine").overrides == ("model.vssm=mine",)


def test_recipes_of_ablations_differ_in_the_model_alone():
    base = yaml.safe_load((ROOT / "configs/ablation/xyscan/config_stage1.yaml").read_text())
    variants = recipe_variants()
    assert {recipe for table in TABLES.values() for recipe in table.rows.values()} <= {one.label for one in variants}
    for variant in variants:
        recipe = yaml.safe_load((ROOT / "configs" / variant.job / "config_stage1.yaml").read_text())
        changes = recipe.pop("model").items() - base["model"].items()
        assert recipe == {key: value for key, value in base.items() if key != "model"}
        assert len(changes) == (variant.label != "xyscan")
        variant.config()


def test_the_paper_s_rows_of_all_tables_are_one_row_a_network():
    assert paper_rows([8]) == paper_table("ablation_fusion")
    rows = paper_rows(TABLES)
    assert list(rows) == ["Reference", "MambaIR", "XYScanNet-S", "bidirectional", "inter", "intra", "none", "AFF"]
    for number, name in ((5, "XYScanNet-S"), (6, "unidirectional"), (7, "intra and inter"), (8, "KLFF")):
        figures = paper_table(TABLES[number].paper)[name]
        assert {column: rows["XYScanNet-S"][column] for column in figures} == pytest.approx(figures)


@pytest.mark.parametrize("command", ["ablation", "complexity", "curve", "features", "receptive_field"])
def test_help_needs_no_pytorch(command):
    code = (
        "import runpy, sys; sys.argv = ['command', '--help']\n"
        "try: runpy.run_module(f'analysis.{name}', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"name = {command!r}\n{code}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage:" in done.stdout and done.stdout.splitlines()[-1] == "0 []"
