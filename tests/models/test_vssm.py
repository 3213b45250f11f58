"""Intra- and Inter-VSSM against the paper's equations written with the module's own layers, one after the other."""

import pytest
import torch
import torch.nn.functional as F

from models.blocks import DecoderBlock
from models.vssm import InterVSSM, IntraVSSM

SIZES = [(5, 7), (6, 6)]


def build(kind):
    torch.manual_seed(0)
    return kind(8).double()


def intra_scanner(F_h, F_v, s6):
    """Eq. 3, row by row and column by column; (B, C/2, H, W) each."""
    rows = [s6(F_h[:, :, y].transpose(1, 2)).transpose(1, 2) for y in range(F_h.shape[2])]
    columns = [s6(F_v[..., x].transpose(1, 2)).transpose(1, 2) for x in range(F_v.shape[3])]
    return torch.stack(rows, dim=2), torch.stack(columns, dim=3)


def inter_scanner(F_h, F_v, s6):
    """Eq. 4: the branch F_h is gated by the scan of the rows' means, F_v by that of the columns'."""
    gate_rows = s6(F_h.mean(3).transpose(1, 2)).sigmoid().transpose(1, 2)
    gate_columns = s6(F_v.mean(2).transpose(1, 2)).sigmoid().transpose(1, 2)
    return F_h * gate_rows[..., None], F_v * gate_columns[:, :, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind, scanner", [(IntraVSSM, intra_scanner), (InterVSSM, inter_scanner)])
def test_is_equation_5(kind, scanner, size):
    vssm = build(kind)
    X = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    first, Y = vssm.dwconv(vssm.proj_in(X)).chunk(2, dim=1)
    F_h, F_v = vssm.conv_input(first).chunk(2, dim=1)
    scanned = vssm.fuse_out(torch.cat(scanner(F_h, F_v, vssm.mamba), dim=1))
    expected = vssm.proj_out(scanned * F.silu(Y))
    y = vssm(X)
    torch.testing.assert_close(y, expected)
    parameters = (X, *vssm.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(out.sin().sum(), parameters) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def seen_by(vssm, y, x, size=(5, 7)):
    """Which positions of the two branches' features the result at (y, x) depends on."""
    branches = torch.randn(2, 1, 4, *size, dtype=torch.float64, requires_grad=True)
    sum(scanned[0, :, y, x].sum() for scanned in vssm.dual_scanner(*branches)).backward()
    return branches.grad.abs().sum((0, 1, 2)) > 0


def test_intra_scanner_sees_its_row_to_the_left_and_its_column_above():
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[2, :4] = expected[:3, 3] = True
    assert torch.equal(seen_by(build(IntraVSSM), 2, 3), expected)


def test_inter_scanner_sees_whole_rows_above_and_whole_columns_to_the_left():
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[:3] = expected[:, :4] = True
    assert torch.equal(seen_by(build(InterVSSM), 2, 3), expected)


def test_residual_stays_in_its_own_precision_under_autocast():
    block = DecoderBlock(8, IntraVSSM(8), InterVSSM(8))
    for module in (block.intra, block.inter, block.ffn1, block.ffn2):
        torch.nn.init.zeros_((module.proj_out if hasattr(module, "proj_out") else module.project_out).weight)
    X = torch.full((1, 8, 6, 4), 1 + 2**-12)  # more bits than bfloat16 has
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block(X), X, rtol=0, atol=0)
