"""The hub's form of a network: written to and read from a folder, which is what the hub holds."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from models import WeightsError, XYScanNet, load

hub = pytest.importorskip("models.hub", reason="huggingface_hub or safetensors is not installed", exc_type=ImportError)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1), slices="intra", fusion="aff", unshuffle=2).eval()


@pytest.fixture
def folder(network, tmp_path):
    hub.HubXYScanNet.of(network).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_network_is_rebuilt_from_its_folder_alone(network, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == network.description
    loaded, images = load(folder), torch.rand(1, 3, 16, 24) - 0.5
    assert not loaded.training and loaded.description == network.description
    assert torch.equal(loaded(images), network(images))


def test_the_card_names_the_network(network, folder):
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "xyscannet" and "deblurring" in card.data.tags
    number = sum(parameter.numel() for parameter in network.parameters())
    assert f"{number:,} parameters" in card.text and "| `slices` | intra |" in card.text


def test_pushing_uploads_the_same_folder_under_its_name(network, tmp_path, monkeypatch):
    pushed = tmp_path / "pushed"

    def upload_folder(self, *, folder_path, repo_id, **_):
        shutil.copytree(folder_path, pushed)
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    assert hub.HubXYScanNet.of(network).push_to_hub("me/net") == "https://huggingface.co/me/net"
    assert 'xyscannet.load("me/net")' in (pushed / "README.md").read_text()
    assert load(pushed).description == network.description


@pytest.mark.parametrize("damage", ["no config", "no weights", "other network", "unknown key", "cut short", "nan"])
def test_a_folder_that_does_not_fit_is_refused(network, folder, damage):
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "nan":
        torch.nn.init.constant_(network.output.weight, float("nan"))
        hub.HubXYScanNet.of(network).save_pretrained(folder)
    else:
        change = {"dim": 16} if damage == "other network" else {"widths": 3}
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(WeightsError) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_repository_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        load("nobody/nothing")
    assert "\n" not in str(error.value)
