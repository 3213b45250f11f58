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
    W_d = torch.randn(2 * hidden, 1, 3, 3)
    return fused.HiddenWeights(torch.randn(channels), torch.randn(channels), 1e-5, matrix(2 * hidden, channels), W_d)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


@SHAPES
def test_feed_forward_works_in_place(batch, channels, hidden, height, width):
    x, weights = features(batch, channels, height, width), hidden_of(channels, hidden)
    W_out, before = matrix(channels, hidden), x.clone()
    assert fused.feed_forward(x, weights, W_out) is x
    assert_same(x, fused.feed_forward_ref(before, weights, W_out))


@SHAPES
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("gate", [True, False])
def test_branches_of_a_region(batch, channels, hidden, height, width, part, gate):
    """The full map, and a part that begins and ends inside it where it can."""
    x, weights, W = features(batch, channels, height, width), hidden_of(channels, hidden), matrix(5, hidden)
    rows = range(part * height // 3, height - part * height // 4)
    columns = range(part * width // 4, width - part * width // 5)
    ours, theirs = (f(x, weights, W, rows, columns, gate) for f in (fused.branches, fused.branches_ref))
    assert ours[0].shape == (batch, 5, len(rows), len(columns))
    assert_same(ours[0], theirs[0])
    if gate:
        assert_same(ours[1], theirs[1])
    else:
        assert ours[1] is None


@SHAPES
@pytest.mark.parametrize("scaled", [True, False])
def test_gated_projection(batch, channels, hidden, height, width, scaled):
    """The branches are halves of a wider map and a view of columns; the scales belong to rows and to columns."""
    x, Y, wide = features(3 * batch, channels, height, width).chunk(3)
    h = wide.chunk(2, dim=1)[0]
    v = features(batch, channels // 2, width, height).mT
    scales = (features(batch, channels // 2, height, 1), features(batch, channels // 2, 1, width)) if scaled else ()
    arguments = x, h, v, Y, matrix(channels, channels), matrix(channels, channels), *scales
    before = x.clone()
    assert_same(fused.gated_projection(*arguments), fused.gated_projection_ref(*arguments))
    assert torch.equal(x, before)


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
    assert ours.shape == x.shape
    assert_same(ours, theirs)


def test_refuses_weights_of_other_shapes():
    x, weights = features(1, 8, 3, 4), hidden_of(8, 6)
    for wrong in ({"W_in": torch.randn(12, 8, 3, 3)}, {"W_d": torch.randn(12, 1, 5, 5)}, {"norm_bias": torch.randn(4)}):
        with pytest.raises(ValueError, match="a tensor must be"):
            fused.feed_forward(x, weights._replace(**wrong), matrix(8, 6))
    with pytest.raises(ValueError, match="a tensor must be"):
        fused.feed_forward(x, weights, matrix(8, 7))
    with pytest.raises(ValueError, match="a tensor must be"):
        fused.gated_projection(x, x[:, :4], x[:, 4:], x, matrix(8, 8), matrix(8, 6))
    for other in (S6(8, d_conv=3), S6(4)):
        with pytest.raises(ValueError, match="weights must have the shapes"):
            s6(torch.randn(1, 2, 3, 8), other.state_dict())


def test_refuses_other_dtypes_and_layouts():
    x, weights = features(1, 8, 3, 4), hidden_of(8, 6)
    with pytest.raises(ValueError, match="float32"):
        fused.feed_forward(x, weights._replace(norm_bias=weights.norm_bias.half()), matrix(8, 6))
    with pytest.raises(ValueError, match="channels last"):
        fused.feed_forward(x.contiguous(), weights, matrix(8, 6))
    with pytest.raises(ValueError, match="a tensor must be"):
        fused.gated_projection(x, x, x, x, matrix(8, 8), matrix(8, 8))
    state = S6(8).state_dict()
    with pytest.raises(ValueError, match="float32"):
        s6(torch.randn(1, 2, 3, 8), state | {"D": state["D"].half()})
    with pytest.raises(ValueError, match="slices"):
        s6(torch.randn(2, 3, 8), state)


def test_a_scale_of_one_channel_is_broadcast():
    x, wide, Y = features(3, 8, 6, 5).chunk(3)
    h, v = wide.chunk(2, dim=1)
    scales = torch.rand(1, 1, 6, 1), torch.rand(1, 4, 1, 5)
    arguments = x, h, v, Y, matrix(8, 8), matrix(8, 8), *scales
    assert_same(fused.gated_projection(*arguments), fused.gated_projection_ref(*arguments))


def test_empty_batches():
    x, weights = features(0, 8, 3, 4), hidden_of(8, 6)
    assert fused.feed_forward(x, weights, matrix(8, 6)).shape == (0, 8, 3, 4)
    assert fused.branches(x, weights, matrix(5, 6), range(3), range(4))[0].shape == (0, 5, 3, 4)
    assert s6(torch.randn(0, 2, 3, 8), S6(8).state_dict()).shape == (0, 2, 3, 8)


def test_runs_in_float32_alone():
    x = features(1, 8, 3, 4)
    assert fused.runs_in_c(x)
    assert not fused.runs_in_c(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.runs_in_c(x)
