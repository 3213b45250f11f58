"""Muon: nearly the polar factor for matrices, torch's own where it has one, Adam for the rest; resumed exactly."""

import copy

import pytest
import torch

from engine.train.muon import Muon, hidden_matrices, orthogonalise
from models import XYScanNet

torch_has_one = hasattr(torch.optim, "Muon")


def network() -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1))


def give_gradients(net: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * 0.1


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16), (1, 9)])
def test_singular_values_end_near_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices[1] *= 1e3  # the size of the gradients does not matter
    found = orthogonalise(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.transpose(1, 2) @ found @ vh.transpose(1, 2)  # diagonal where the singular vectors are the same
    diagonal = values.diagonal(dim1=1, dim2=2)
    off_diagonal = values - torch.diag_embed(diagonal)
    well_conditioned = s > 0.02 * s.flatten(1).norm(dim=1, keepdim=True)
    assert off_diagonal.abs().max() < 1e-9
    assert well_conditioned.float().mean() > 0.9
    assert 0.6 < diagonal[well_conditioned].min() and diagonal.max() < 1.3


def test_which_weights_are_matrices():
    net = network()
    chosen = {id(p) for p in hidden_matrices(net)}
    names = {name for name, p in net.named_parameters() if id(p) in chosen}
    assert {
        "down1_2.body.1.weight",
        "clff_level1.conv.weight",
        "decoder_level1.0.intra.mamba.in_proj.weight",
        "encoder_level2.0.ffn1.project_in.weight",
    } <= names
    for other in ("patch_embed", "output", "dwconv", "conv1d", "x_proj", "dt_proj", "A_log", "norm"):
        assert not [name for name in names if other in name]
    optimizer = Muon(net, 1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


def test_all_the_rest_goes_as_with_adam():
    ours, theirs = network(), network()
    optimizer, adam = Muon(ours, 2e-3), torch.optim.Adam(theirs.parameters(), lr=2e-3)
    for seed in range(4):
        for net, step in ((ours, optimizer.step), (theirs, adam.step)):
            give_gradients(net, seed)
            step()
    chosen = {id(p) for p in hidden_matrices(ours)}
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (torch.allclose(p, q, rtol=1e-5, atol=1e-7)) != (id(p) in chosen), name


@pytest.mark.skipif(not torch_has_one, reason=f"torch {torch.__version__} has no torch.optim.Muon to compare with")
def test_a_matrix_goes_as_with_torch():
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(2))
    net = torch.nn.Sequential(torch.nn.Linear(40, 24, bias=False))
    net[0].weight.data.copy_(weight)
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = Muon(net, 1e-2)
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        give_gradients(net, seed)
        theirs.grad = net[0].weight.grad.clone()
        optimizer.step()
        reference.step()
    moved = (theirs - weight).norm()
    assert (net[0].weight - theirs).norm() < 0.03 * moved  # torch iterates in bfloat16


def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path):
    net = network()
    optimizer = Muon(net, 1e-3)
    give_gradients(net, 0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pth")
    resumed = copy.deepcopy(net)
    again = Muon(resumed, 1e-3)
    again.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for one, step in ((net, optimizer.step), (resumed, again.step)):
        give_gradients(one, 1)
        step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), resumed.parameters(), strict=True))
