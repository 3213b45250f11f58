"""Which weights a command finds, and what the recipe adds to them."""

import pytest
import torch

from engine.config import ConfigError
from engine.predict.inference import Restorer
from engine.predict.weights import MissingWeights, find_weights, load_any_network, network_options
from models.weights import WeightsError
from tests.engine.predict.test_peers import nafnet, restormer
from tests.workplace import make_config

CPU = torch.device("cpu")


def test_missing_weights_say_what_is_there_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2)
    with pytest.raises(ConfigError, match="configs/jay/config_stage2.yaml: no such file; available jobs: j"):
        find_weights(None, "jay", "best")
    with pytest.raises(MissingWeights, match="results/j/models holds no weights") as error:
        find_weights(None, "j", "best")
    assert "train_XYScanNet_stage1.py" not in str(error.value)  # it has no stage 1 of its own
    models = tmp_path / "results" / "j" / "models"
    models.mkdir(parents=True)
    (models / "final_XYScanNet_stage2.pth").touch()
    with pytest.raises(MissingWeights) as error:
        find_weights(None, "j", "best")
    for part in (
        "results/j/models/best_XYScanNet_stage2.pth",
        "holds final_XYScanNet_stage2.pth",
        "--weights FILE",
        "python train_XYScanNet_stage2.py --job_name j",
    ):
        assert part in str(error.value)
    with pytest.raises(MissingWeights, match="other.pth, the file given with --weights"):
        find_weights(tmp_path / "other.pth", "j", "best")
    assert str(find_weights(None, "j", "final")) == "results/j/models/final_XYScanNet_stage2.pth"


def test_a_jobs_own_weights_come_before_those_shipped_with_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2)
    shipped = tmp_path / "models" / "pretrained" / "j.pth"
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    assert str(find_weights(None, "j", "best")) == "models/pretrained/j.pth"
    with pytest.raises(MissingWeights, match="other.pth, the file given with --weights"):
        find_weights(tmp_path / "other.pth", "j", "best")
    own = tmp_path / "results" / "j" / "models" / "best_XYScanNet_stage2.pth"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_weights(None, "j", "best").resolve() == own


def test_a_scan_backend_of_another_machine_gives_way(weights, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    make_config(tmp_path, "j", stage=2, model={"scan_backend": "mamba_ssm"})
    assert network_options(weights, "j", CPU)["scan_backend"] == "auto"
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "mamba_ssm" in caplog.text
    image = torch.rand(1, 3, 16, 24) - 0.5
    restored = (Restorer(weights, job, CPU).restore(image)[0] for job in ("j", "none"))
    assert torch.equal(*restored)


@pytest.mark.parametrize("has_spandrel", [True, False])
def test_what_is_an_xyscannets_or_damaged_keeps_its_own_error(weights, tmp_path, monkeypatch, has_spandrel):
    monkeypatch.setattr("engine.predict.weights.has_spandrel", lambda: has_spandrel)
    state = torch.load(weights, weights_only=True)
    state.pop("decoder_level1.0.intra.proj_in.weight")
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "damaged.pth").write_bytes(weights.read_bytes()[:-100])
    for name in ("cut.pth", "damaged.pth"):
        with pytest.raises(WeightsError) as error:
            load_any_network(tmp_path / name, "none", CPU)
        assert "spandrel" not in str(error.value)


@pytest.mark.parametrize("make", [nafnet, restormer])  # Restormer has names that XYScanNet has too
@pytest.mark.parametrize("key", [None, "params", "params_ema"])
def test_other_networks_are_known_by_their_content(tmp_path, make, key):
    pytest.importorskip("spandrel_extra_arches", reason="the extra peers is not installed")
    state = make().state_dict()
    torch.save({key: state} if key else state, tmp_path / "xyscannet.pth")
    network = load_any_network(tmp_path / "xyscannet.pth", "none", CPU)
    assert network.architecture.lower() == make.__name__ and not network.training


def test_without_spandrel_the_error_says_what_other_networks_need(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.predict.weights.has_spandrel", lambda: False)
    torch.save({"params": {"intro.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="spandrel"):
        load_any_network(tmp_path / "other.pth", "none", CPU)
