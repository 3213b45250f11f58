"""Configurations: typed, strict, with errors that name file and key; the schedule they describe."""

import pytest
import yaml

from engine.config import (
    ConfigError,
    find_recipes,
    load_config,
    model_options,
    models_dir,
    parse_stage_config,
    results_dir,
    save_config,
    shipped_weights,
)
from engine.train.schedule import cosine
from engine.typed_yaml import parse_yaml
from tests.workplace import make_config


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path)
    return tmp_path


def test_values_and_overrides(place):
    config = load_config("tiny", 1, ["optim.lr=1e-4", "data.train=[a, b]", "model.num_blocks=[1,2,3]", "data.val=null"])
    assert config.optim.lr == 1e-4 and config.data.train == ("a", "b") and config.model.num_blocks == (1, 2, 3)
    assert config.data.val is None and config.train.epochs == 2 and config.train.seed == 666
    assert config.optim.min_lr == 1e-7 and config.model.kl_gate == "image"


def test_text_that_is_a_number_is_a_number(place):
    """PyYAML reads 1e-4, without a point, as text."""
    assert yaml.safe_load("1e-4") == "1e-4"
    make_config(place, "text", optim={"lr": "1e-4"})
    assert load_config("text", 1).optim.lr == 1e-4


@pytest.mark.parametrize(
    "section, key, value, words",
    [
        ("model", "dims", 48, "config_stage1.yaml: model.dims: unknown key; did you mean dim?"),
        ("model", "dim", "48", "model.dim: must be a whole number, not '48'"),
        ("model", "dim", 47, "model.dim: must be even, at least 2, not 47"),
        ("model", "dim", True, "model.dim: must be a whole number, not True"),
        ("model", "num_blocks", [3, 3], "model.num_blocks: must be a list of 3"),
        ("model", "kl_gate", "pixel", "model.kl_gate: must be one of elementwise, image, batch, not 'pixel'"),
        ("data", "patch_size", 8, "data.patch_size: must be at least 16, not 8"),
        ("data", "train", 3, "data.train: must be text or a list of 2, not 3"),
        ("optim", "lr", "fast", "optim.lr: must be a finite number, not 'fast'"),
        ("optim", "name", "sgd", "optim.name: must be one of adam, muon, not 'sgd'"),
        ("loss", "pixel", "l1", "loss.pixel: must be one of mse, charbonnier, "),
        ("loss", "pixel", "edge", "loss.pixel: must be a term without another weight, not 'edge'"),
        ("loss", "weights", {"l1": 1}, "loss.weights: must name terms among mse, charbonnier, not {'l1': 1.0}"),
        ("loss", "weights", {"edge": 1}, "loss.weights: must name terms among mse, charbonnier, not"),
        ("loss", "weights", {"mse": "much"}, "loss.weights.mse: must be a finite number, not 'much'"),
        ("loss", "weights", {"mse": -1}, "loss.weights: must be in [0, 1e+06], not {'mse': -1.0}"),
        ("loss", "weights", [1], "loss.weights: must be a mapping of names to numbers, not [1]"),
        ("optim", "lr", 1e-9, "optim.lr: needs 0 <= min_lr <= lr"),
        ("optim", "lr", -1.0, "optim.lr: needs 0 <= min_lr <= lr"),
        ("train", "iterations", 5, "train.epochs: must be null beside iterations: 5"),
        ("train", "ema_decay", 1.0, "train.ema_decay: must be in [0, 1)"),
        ("sheduler", "x", 1, "sheduler: unknown key"),
    ],
)
def test_mistakes_name_file_and_key(place, section, key, value, words):
    make_config(place, "wrong", **{section: {key: value}})
    with pytest.raises(ConfigError) as error:
        load_config("wrong", 1)
    assert words in str(error.value) and "configs/wrong/config_stage1.yaml" in str(error.value)


@pytest.mark.parametrize(
    "override, words",
    [
        ("epochs=3", "'epochs=3' is not of the form section.key=value"),
        ("trian.epochs=3", "no section 'trian'; did you mean train?"),
        ("train.epochs=many", "command line: train.epochs: must be whole number or null"),
        ("train.epochs=0", "command line: train.epochs: must be at least 1, not 0"),
    ],
)
def test_mistakes_on_the_command_line_are_called_so(place, override, words):
    with pytest.raises(ConfigError) as error:
        load_config("tiny", 1, [override])
    assert words.replace("must be whole", "must be a whole") in str(error.value)


def test_missing_files_say_what_there_is(place):
    with pytest.raises(ConfigError, match="configs/tini/config_stage1.yaml: no such file; available jobs: tiny"):
        load_config("tini", 1)
    with pytest.raises(ConfigError, match="configs/tiny has config_stage1.yaml"):
        load_config("tiny", 2)
    (place / "configs/tiny/config_stage2.yaml").write_text("- a list")
    with pytest.raises(ConfigError, match="must hold sections"):
        load_config("tiny", 2)
    (place / "configs/tiny/config_stage2.yaml").write_text("model: {dim: 8}")
    with pytest.raises(ConfigError, match="config_stage2.yaml: data: must be given"):
        load_config("tiny", 2)


def test_recipes_and_weights_that_are_not_here_are_the_repositorys(place):
    assert load_config("xyscannet_t", 1).model.unshuffle == 2 and shipped_weights("xyscannet_t").is_file()
    assert load_config("tiny", 1).model.dim == 8  # here
    assert find_recipes()[0] == "tiny" and "xyscannet_t" in find_recipes()
    assert find_recipes("ablation") == [name for name in find_recipes() if name.startswith("ablation/")]


def test_saved_record_reads_back_the_same(place):
    config = load_config("tiny", 1, ["model.kl_gate=elementwise", "data.train=[a, b]"])
    save_config(config, place / "configs" / "again" / "config_stage1.yaml", git="abc")
    again = load_config("again", 1)
    assert again.model == config.model and again.data == config.data and again.train == config.train


def test_options_of_a_trained_network_come_from_the_record_nearest_to_its_weights(place):
    elsewhere = place / "elsewhere" / "some.pth"
    assert model_options(elsewhere, "nothing") == {}
    make_config(place, "tiny", stage=2, model={"slices": "intra"})
    for job in ("tiny", "tiny@again"):
        assert model_options(elsewhere, job)["slices"] == "intra"  # the recipe
    record = place / "results" / "tiny" / "config_stage2.yaml"
    save_config(load_config("tiny", 2, ["model.kl_gate=batch"]), record)
    assert model_options(elsewhere, "tiny")["kl_gate"] == "batch"  # what the job was trained with
    own = place / "results" / "other" / "models" / "best_XYScanNet_stage1.pth"
    save_config(load_config("tiny", 1, ["model.scan=bidirectional"]), own.parent.parent / "config_stage1.yaml")
    assert model_options(own, "tiny") == {
        "kl_gate": "image",
        "scan_backend": "auto",
        "scan": "bidirectional",
        "slices": "intra_inter",
    }  # these weights' own, whatever the job


def test_variants_that_cannot_be_are_refused(place):
    with pytest.raises(ConfigError, match=r"model.vssm: .*ss2d has scans of its own"):
        load_config("tiny", 1, ["model.vssm=ss2d", "model.slices=intra"])
    with pytest.raises(ConfigError, match="model.fusion"):
        load_config("tiny", 1, ["model.fusion=mean"])


@pytest.mark.parametrize(
    "epoch, expected",
    [(0, 2.2e-4), (1, 2.19999966e-4), (1000, 1.87796390e-4), (2000, 1.1005e-4), (3999, 1.00033914e-7), (4000, 1e-7)],
)
def test_schedule_is_the_released_one(epoch, expected):
    assert cosine(epoch, 4000, 2.2e-4, 1e-7) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    "override",
    [
        "data.train=[a",
        "data.train=!!python/object:os.system {}",
        "data.train=" + "[" * 1000,
        "optim.lr=.inf",
        "optim.lr=.nan",
        "data.train.x=1",
        "job_name.x=1",
        "optim.lr=" + "9" * 400,
        "optim.lr=1e38",
        "optim.lr=11",
        "loss.edge_weight=.inf",
        "loss.contrast_weight=1e38",
        "train.start_from=2020-99-99",
        "train.start_from=2020-01-01",
        "train.seed=" + "9" * 5000,
        "train.seed=0x" + "f" * 5000,
        "data.workers=0x" + "f" * 5000,
        "model.kl_gate=0x" + "f" * 5000,
    ],
)
def test_impossible_overrides_are_refused_in_one_line_with_their_key(place, override):
    with pytest.raises(ConfigError) as error:
        load_config("tiny", 1, [override])
    line = str(error.value)
    assert line.startswith(f"command line: {override.partition('=')[0]}: ") and "\n" not in line and len(line) < 400


def test_what_the_command_line_refuses_is_a_line_and_status_2(place, capsys):
    for argv in (["--job_name", "../x"], ["--job_name", "tiny", "train.start_from=2020-99-99"]):
        with pytest.raises(SystemExit) as end:
            parse_stage_config(1, "", argv)
        assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_keys_that_are_merged_are_not_given_twice():
    text = "base: &a {x: 1}\ndeep:\n  inner: &b\n    <<: *a\n    x: 2\nother:\n  <<: *b\n"
    assert parse_yaml(text, "here") == yaml.safe_load(text)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"a: " + b"[" * 1000,
        b"model: !!python/object:os.system {}",
        b"data: 3\ntrain: {epochs: 1}",
        b"a: !!map [b]",
        b"optim: {lr: 1}\noptim: {}",
    ],
)
def test_files_that_are_no_recipe_are_named(place, content):
    path = place / "configs" / "tiny" / "config_stage1.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="config_stage1.yaml"):
        load_config("tiny", 1, ["data.patch_size=32"])


@pytest.mark.parametrize(
    "name",
    ["j" * 201, "ü" * 101, "../escape", "/absolute", "", ".", "a/../../b", "a//b", "tiny/", "a\0b", "a\nb", "\udcff"],
)
@pytest.mark.parametrize("use", [results_dir, models_dir, shipped_weights, lambda name: load_config(name, 1)])
def test_job_names_that_cannot_be_folders_are_refused(place, name, use):
    with pytest.raises(ConfigError, match="job name"):
        use(name)


def test_the_longest_job_name_leaves_room_for_temporary_files(place):
    name = "tiny@" + "j" * 195
    config = load_config(name, 1)
    save_config(config, results_dir(name) / "config_stage1.yaml")
    assert (results_dir(name) / "config_stage1.yaml").is_file()


def test_a_recipe_that_cannot_be_read_is_named(place, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    with pytest.raises(ConfigError, match="configs/tiny/config_stage1.yaml: Permission denied"):
        load_config("tiny", 1)


def test_the_weights_of_loss_terms(place):
    loss = load_config("tiny", 1).loss
    assert loss.terms == {"charbonnier": 1, "edge": 0.05}
    loss = load_config("tiny", 1, ["loss.pixel=edge", "loss.edge_weight=0", "loss.weights={mse: 1e-1}"]).loss
    assert loss.terms == {"edge": 1, "mse": 0.1}
