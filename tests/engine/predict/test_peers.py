"""Peers: small networks of their classes, with random weights, found by content."""

import importlib.util

import pytest
import torch

from engine.predict.peers import PeerWeightsError, has_spandrel, load_peer

pytestmark = pytest.mark.skipif(
    not (has_spandrel() and importlib.util.find_spec("spandrel_extra_arches")),
    reason="the extra peers is not installed",
)


def nafnet():
    from spandrel.architectures.NAFNet.__arch.NAFNet_arch import NAFNet

    return NAFNet(width=8, enc_blk_nums=[1, 1], middle_blk_num=1, dec_blk_nums=[1, 1])


def restormer():
    from spandrel_extra_arches.architectures.Restormer.__arch.restormer_arch import Restormer

    return Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    "make, name, licence", [(nafnet, "NAFNet", "permissive"), (restormer, "Restormer", "restrictive")]
)
def test_weights_make_their_network(tmp_path, make, name, licence):
    torch.manual_seed(0)
    network = make().eval()
    torch.save({"params": network.state_dict()}, tmp_path / "weights.pth")
    peer = load_peer(tmp_path / "weights.pth")
    assert peer.architecture == name and peer.licence.startswith(licence)
    images = torch.rand(1, 3, 24, 40) - 0.5
    with torch.no_grad():
        expected = (network(images + 0.5)).clamp(0, 1) - 0.5
        assert torch.allclose(peer(images), expected, atol=1e-5)
        assert peer(images[..., :13, :21]).shape == (1, 3, 13, 21)


def test_what_is_no_networks_gets_a_line(tmp_path):
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(PeerWeightsError, match="not the weights of a supported network"):
        load_peer(tmp_path / "other.pth")


def test_a_damaged_safetensors_file_gets_a_line(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(PeerWeightsError, match="cut.safetensors"):
        load_peer(tmp_path / "cut.safetensors")


def test_a_network_that_enlarges_is_refused(tmp_path):
    from spandrel.architectures.SPAN.__arch.span import SPAN

    torch.save(SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).state_dict(), tmp_path / "span.pth")
    with pytest.raises(PeerWeightsError, match="scaled by 2"):
        load_peer(tmp_path / "span.pth")
