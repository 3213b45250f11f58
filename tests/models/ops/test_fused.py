"""Parts of the blocks in C, without gradients, against PyTorch's operations and the modules themselves."""

import pytest
import torch

from models.mamba import S6
from models.ops import fused
from models.ops.s6 import s6
from models.ops.selective_scan import cpu

pytestmark = pytest.mark.skipif(bool(cpu.why_missing()), reason=f"cpu: {cpu.why_missing()}")

# Channels that fill no vector, half of one, several; images of a pixel, of fewer rows than threads, wider than a tile.
SHAPES = pytest.mark.parametrize(
    "batch, channels, hidden, height, width",
    [(1, 8, 8, 1, 1), (3, 20, 12, 2, 70), (2, 48, 48, 33, 41), (1, 6, 10, 40, 3), (1, 96, 144, 9, 7)],
)


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    torch.manual_seed(0)


def features(*shape: int) -> torch.Tensor:
    batch, channels, height, width = shape
    return torch.randn(batch, height, width, channels).movedim(-1, 1)


def matrix(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, 1, 1) / inputs**0.5


def hidden_of(channels: int, hidden: int) -> fused.HiddenWeights:
    W_d = torch.randn(hidden, 1, 3, 3)
    return fused.HiddenWeights(torch.randn(channels), torch.randn(channels), 1e-5, matrix(hidden, channels), W_d)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


@SHAPES
def test_feed_forward_works_in_place(batch, channels, hidden, height, width):
    x, weights = features(batch, channels, height, width), hidden_of(channels, 2 * hidden)
    W_out, before = matrix(channels, hidden), x.clone()
    assert fused.feed_forward(x, weights, W_out) is x
    assert_same(x, fused.feed_forward_ref(before, weights, W_out))


@SHAPES
def test_branches_leave_x_as_it_is(batch, channels, hidden, height, width):
    x, weights, W = features(batch, channels, height, width), hidden_of(channels, hidden), matrix(5, hidden)
    before = x.clone()
    ours = fused.branches(x, weights, W)
    assert ours.shape == (batch, 5, height, width) and torch.equal(x, before)
    assert_same(ours, fused.branches_ref(x, weights, W))


@SHAPES
def test_gated_projection_works_in_place(batch, channels, hidden, height, width):
    """On a view of a wider map, with other numbers of channels in between."""
    x, weights = features(batch, channels, height, width), hidden_of(channels, hidden)
    f = features(batch, 7 + channels, height, width)[:, 7:]
    before, kept, matrices = x.clone(), f.clone(), (matrix(hidden, channels), matrix(channels, hidden))
    assert fused.gated_projection(x, f, weights, *matrices) is x and torch.equal(f, kept)
    assert_same(x, fused.gated_projection_ref(before, f, weights, *matrices))


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize(
    "batch, slices, length, model, states",
    [(1, 1, 1, 4, 16), (2, 33, 70, 24, 16), (1, 32, 64, 96, 16), (2, 5, 2, 10, 16), (1, 7, 40, 12, 8)],
)
def test_s6_is_the_module(batch, slices, length, model, states, columns):
    mamba = S6(model, d_state=states, scan_backend="reference").eval()
    with torch.no_grad():
        for weight in mamba.parameters():
            weight.mul_(1.5)
        x = torch.randn(batch, length, slices, model).transpose(1, 2) if columns else None
        x = torch.randn(batch, slices, length, model) if x is None else x
        ours, theirs = s6(x, mamba.state_dict()), mamba(x)
        overwritten = s6(x, mamba.state_dict(), overwrite_x=True)
    assert ours.shape == x.shape and torch.equal(overwritten, ours) and torch.equal(x, ours)
    assert_same(ours, theirs)


def test_refuses_weights_of_other_shapes():
    x, weights = features(1, 8, 3, 4), hidden_of(8, 12)
    for wrong in ({"W_in": torch.randn(12, 8, 3, 3)}, {"W_d": torch.randn(12, 1, 5, 5)}, {"norm_bias": torch.randn(4)}):
        with pytest.raises(ValueError, match="a tensor must be"):
            fused.feed_forward(x, weights._replace(**wrong), matrix(8, 6))
    for W_out in (matrix(8, 7), matrix(9, 6)):
        with pytest.raises(ValueError, match="a tensor must be"):
            fused.feed_forward(x, weights, W_out)
    for f, W_f, W_out in (
        (x[:, :, :2], matrix(12, 8), matrix(8, 12)),
        (x, matrix(12, 7), matrix(8, 12)),
        (x, matrix(11, 8), matrix(8, 12)),
        (x, matrix(12, 8), matrix(8, 11)),
    ):
        with pytest.raises(ValueError, match="a tensor must be"):
            fused.gated_projection(x, f, weights, W_f, W_out)
    for other in (S6(8, d_conv=3), S6(4)):
        with pytest.raises(ValueError, match="weights must have the shapes"):
            s6(torch.randn(1, 2, 3, 8), other.state_dict())


def test_refuses_other_dtypes_and_layouts():
    x, weights = features(1, 8, 3, 4), hidden_of(8, 12)
    with pytest.raises(ValueError, match="float32"):
        fused.feed_forward(x, weights._replace(norm_bias=weights.norm_bias.half()), matrix(8, 6))
    with pytest.raises(ValueError, match="channels last"):
        fused.feed_forward(x.contiguous(), weights, matrix(8, 6))
    with pytest.raises(ValueError, match="channels last"):
        fused.gated_projection(x, x.contiguous(), weights, matrix(12, 8), matrix(8, 12))
    state = S6(8).state_dict()
    with pytest.raises(ValueError, match="float32"):
        s6(torch.randn(1, 2, 3, 8), state | {"D": state["D"].half()})
    with pytest.raises(ValueError, match="slices"):
        s6(torch.randn(2, 3, 8), state)


def test_empty_batches():
    x, weights = features(0, 8, 3, 4), hidden_of(8, 12)
    assert fused.feed_forward(x, weights, matrix(8, 6)).shape == (0, 8, 3, 4)
    assert fused.branches(x, weights, matrix(5, 12)).shape == (0, 5, 3, 4)
    assert fused.gated_projection(x, x, weights, matrix(12, 8), matrix(8, 12)).shape == (0, 8, 3, 4)
    assert s6(torch.randn(0, 2, 3, 8), S6(8).state_dict()).shape == (0, 2, 3, 8)


def test_runs_in_float32_alone():
    x = features(1, 8, 3, 4)
    assert fused.runs_in_c(x)
    assert not fused.runs_in_c(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.runs_in_c(x)
