"""What the scanners may see: rows and columns for the Intra-Scanner, means across them for the Inter-Scanner."""
import pytest
import torch
import torch.nn.functional as F

from models.mamba import S6
from models.vssm import InterVSSM, IntraVSSM, inter_scanner, intra_scanner


@pytest.fixture
def s6():
    torch.manual_seed(0)
    return S6(4).double()


def features(height=5, width=7):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, height, width, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("size", [(5, 7), (6, 6)])
def test_intra_scanner_scans_each_row_and_each_column(s6, size):
    F_h, F_v = features(*size)
    h, v = intra_scanner(F_h, F_v, s6)
    for y in range(size[0]):
        torch.testing.assert_close(h[:, :, y], s6(F_h[:, :, y].transpose(1, 2)).transpose(1, 2))
    for x in range(size[1]):
        torch.testing.assert_close(v[:, :, :, x], s6(F_v[:, :, :, x].transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("size", [(5, 7), (6, 6)])
def test_inter_scanner_gates_with_the_scan_of_the_means(s6, size):
    F_h, F_v = features(*size)
    h, v = inter_scanner(F_h, F_v, s6)
    gate_rows = s6(F_h.mean(3).transpose(1, 2)).sigmoid().transpose(1, 2)
    gate_columns = s6(F_v.mean(2).transpose(1, 2)).sigmoid().transpose(1, 2)
    torch.testing.assert_close(h, F_h * gate_rows[..., None])
    torch.testing.assert_close(v, F_v * gate_columns[:, :, None])


def test_intra_scanner_is_causal_to_the_right_and_downwards(s6):
    F_h, F_v = features()
    F_h.requires_grad_(), F_v.requires_grad_()
    h, v = intra_scanner(F_h, F_v, s6)
    (h[:, :, 2, 3] + v[:, :, 2, 3]).sum().backward()
    seen_h, seen_v = F_h.grad.abs().sum((0, 1)) > 0, F_v.grad.abs().sum((0, 1)) > 0
    assert seen_h[2, :4].all() and seen_h.sum() == 4
    assert seen_v[:3, 3].all() and seen_v.sum() == 3


def test_square_images_scan_in_one_batch(s6, monkeypatch):
    calls = []
    s6.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    intra_scanner(*features(6, 6), s6)
    assert calls == [(24, 6, 4)]


@pytest.mark.parametrize("kind, scanner", [(IntraVSSM, intra_scanner), (InterVSSM, inter_scanner)])
def test_vssm_is_equation_5(kind, scanner):
    torch.manual_seed(0)
    vssm = kind(8).double()
    X = torch.randn(1, 8, 6, 4, dtype=torch.float64)
    first, Y = vssm.dwconv(vssm.proj_in(X)).chunk(2, dim=1)
    F_h, F_v = vssm.conv_input(first).chunk(2, dim=1)
    scanned = vssm.fuse_out(torch.cat(scanner(F_h, F_v, vssm.mamba), dim=1))
    torch.testing.assert_close(vssm(X), vssm.proj_out(scanned * F.silu(Y)))
