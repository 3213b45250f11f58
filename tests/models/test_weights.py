"""Weights files in every form users hold; clear words about the wrong ones."""
import pytest
import torch

from models import WeightsError, XYScanNet, load_network, load_weights
from models.weights import read_weights


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return XYScanNet(8, (1, 2, 1))


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("inside", [False, True])
def test_released_forms_load(tmp_path, network, prefix, inside):
    state = {prefix + name: value for name, value in network.state_dict().items()}
    content = {"epoch": 7, "model_state": state, "optimizer_state": {}, "scheduler_state": {}} if inside else state
    torch.save(content, tmp_path / "w.pth")
    loaded = XYScanNet(8, (1, 2, 1))
    load_weights(loaded, tmp_path / "w.pth")
    assert same(loaded, network)


def test_network_is_built_from_the_weights_alone(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_network(tmp_path / "w.pth", kl_gate="elementwise")
    assert (loaded.dim, loaded.num_blocks, loaded.kl_gate, loaded.training) == (8, (1, 2, 1), "elementwise", False)
    assert same(loaded, network)


def test_how_many_pixels_a_position_has_is_read_off_the_weights(tmp_path):
    network = XYScanNet(8, (1, 1, 1), unshuffle=2)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_network(tmp_path / "w.pth")
    assert loaded.unshuffle == 2 and same(loaded, network)
    for channels in (1, 27):
        other = network.state_dict() | {"patch_embed.proj.weight": torch.zeros(8, channels, 3, 3)}
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=r"other\.pth: .* misshapen, the first patch_embed\.proj\.weight"):
            load_network(tmp_path / "other.pth")


def test_wrong_file_names_the_first_missing_unexpected_and_misshapen_keys(tmp_path, network):
    state = network.state_dict()
    del state["output.weight"]
    state["head.bias"] = torch.zeros(3)
    state["patch_embed.proj.weight"] = torch.zeros(9, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 missing, the first output\.weight; 1 unexpected, the first head\.bias; "
                                           r"1 misshapen, the first patch_embed\.proj\.weight: \(9, 3, 3, 3\) in the "
                                           r"file, \(8, 3, 3, 3\) in the network"):
        load_weights(XYScanNet(8, (1, 2, 1)), tmp_path / "w.pth")


def test_other_networks_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not XYScanNet weights; its first key is conv.weight"):
        load_network(tmp_path / "w.pth")


class Malicious:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(WeightsError, match=r"w\.pth: cannot be read"):
        read_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(path)
    torch.save({"code": Malicious()}, path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(path)
