"""S6 against Mamba's formulas written with PyTorch's own layers."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.mamba import S6
from models.ops.selective_scan import selective_scan


@pytest.fixture
def s6():
    torch.manual_seed(0)
    return S6(20).double()


def by_the_formulas(s6: S6, u: torch.Tensor) -> torch.Tensor:
    x, z = s6.in_proj(u).chunk(2, dim=-1)
    x = F.silu(s6.conv1d(x.transpose(1, 2))[..., : u.shape[1]])
    dt, B, C = s6.x_proj(x.transpose(1, 2)).split([s6.dt_rank, s6.d_state, s6.d_state], dim=-1)
    y = selective_scan(
        x,
        F.softplus(s6.dt_proj(dt)).transpose(1, 2),
        -torch.exp(s6.A_log),
        B.transpose(1, 2),
        C.transpose(1, 2),
        s6.D,
        backend="reference",
    )
    return s6.out_proj(y.transpose(1, 2) * F.silu(z))


@pytest.mark.parametrize("length", [1, 3, 4, 17])
def test_equals_the_formulas(s6, length):
    u = torch.randn(3, length, 20, dtype=torch.float64)
    torch.testing.assert_close(s6(u), by_the_formulas(s6, u), rtol=1e-10, atol=1e-12)


def test_scans_each_row_of_a_map_by_itself(s6):
    u = torch.randn(2, 5, 7, 20, dtype=torch.float64)
    y = s6(u)
    for k in range(5):
        torch.testing.assert_close(y[:, k], by_the_formulas(s6, u[:, k]))


def test_is_causal(s6):
    u = torch.randn(1, 12, 20, dtype=torch.float64)
    changed = u.clone()
    changed[:, 7:] += 1
    torch.testing.assert_close(s6(changed)[:, :7], s6(u)[:, :7])
    assert (s6(changed)[:, 7:] != s6(u)[:, 7:]).any()


def test_initialisation_is_mambas():
    torch.manual_seed(0)
    s6 = S6(64)
    torch.testing.assert_close(s6.A_log, torch.arange(1, 17).float().log().expand(128, 16))
    assert (s6.D == 1).all() and s6.dt_rank == 4
    dt = F.softplus(s6.dt_proj.bias)
    assert 1e-4 <= dt.min() and dt.max() <= 0.1001
    # Log-uniform in [0.001, 0.1]: the mean of log dt is that of the bounds, within four standard errors.
    expected, spread = math.log(1e-2), math.log(100) / math.sqrt(12 * 128)
    assert abs(dt.log().mean().item() - expected) < 4 * spread
    assert s6.dt_proj.weight.abs().max() <= 4**-0.5
