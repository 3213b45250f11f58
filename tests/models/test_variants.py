"""The ablations' variants: sizes as the paper gives them, and what each of them computes."""

import pytest
import torch
import torch.nn.functional as F

from models import WeightsError, XYScanNet, load_network, xyscannet_s
from models.mamba import S6
from models.ops.selective_scan import selective_scan
from models.ss2d import SS2D
from models.streaming import stream
from models.vssm import InterVSSM, IntraVSSM

VARIANTS = [
    {"vssm": "ss2d"},
    {"scan": "bidirectional"},
    {"slices": "intra"},
    {"slices": "inter"},
    {"fusion": "aff"},
    {"fusion": "none"},
]


def small(**variant) -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 2), **variant).double().eval()


def images(height: int, width: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "variant, count",
    [
        ({"vssm": "ss2d"}, 7_406_496),
        ({"fusion": "aff"}, 7_301_952 - 71_424 + 152_352),
        ({"fusion": "none"}, 7_230_528),
        ({"scan": "bidirectional"}, 7_301_952),
        ({"slices": "intra"}, 7_301_952),
        ({"slices": "inter"}, 7_301_952),
    ],
)
def test_parameter_counts(variant, count):
    """7.41 M with SS2D (Table 5); 71.43 K in KLFF and 152.35 K in AFF (Table 8)."""
    with torch.device("meta"):
        network = xyscannet_s(**variant)
    assert parameters(network) == count


def test_fusion_modules_have_the_papers_sizes():
    with torch.device("meta"):
        sizes = [
            sum(
                parameters(module)
                for name, module in xyscannet_s(fusion=fusion).named_children()
                if name.startswith("clff")
            )
            for fusion in ("klff", "aff", "none")
        ]
    assert sizes == [71_424, 152_352, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_restores_any_size_learns_everywhere_and_is_not_the_network(variant):
    network, image = small(**variant), images(18, 29, count=2)
    restored = network(image)
    assert restored.shape == image.shape
    restored.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert not torch.allclose(restored, small()(image))
    assert torch.allclose(network(image[1:]), restored[1:], atol=1e-12)  # no image depends on its neighbour


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_streams_to_the_same(variant):
    network, image = small(**variant), images(22, 30)
    with torch.no_grad():
        assert torch.allclose(stream(network, image, band=8), network(image), atol=1e-9)


@pytest.mark.parametrize("slices, kind", [("intra", IntraVSSM), ("inter", InterVSSM)])
def test_one_kind_of_slices_stands_in_both_places(slices, kind):
    blocks = [block for level in (1, 2, 3) for block in getattr(small(slices=slices), f"decoder_level{level}")]
    assert len(blocks) == 4 and all(type(part) is kind for block in blocks for part in (block.intra, block.inter))


def test_both_directions_are_one_scan_and_that_of_the_mirrored_sequence():
    torch.manual_seed(0)
    one, both = S6(8).double(), S6(8, bidirectional=True).double()
    both.load_state_dict(one.state_dict())
    u = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    assert torch.allclose(both(u), one(u) + one(u.flip(-2)).flip(-2), atol=1e-12)
    assert torch.allclose(both(u.flip(-2)).flip(-2), both(u), atol=1e-12)


def test_ss2d_scans_four_routes_through_the_flattened_map():
    """Against the definition: visit the pixels in each route's order, scan, put the results back, add up."""
    torch.manual_seed(0)
    module, (height, width) = SS2D(4).double(), (3, 5)
    x = torch.randn(1, height, width, 6, dtype=torch.float64)
    by_rows = [(i, j) for i in range(height) for j in range(width)]
    by_columns = [(i, j) for j in range(width) for i in range(height)]
    expected = torch.zeros_like(x)
    for route, order in zip(module.routes, (by_rows, by_columns, by_rows[::-1], by_columns[::-1]), strict=True):
        sequence = torch.stack([x[0, i, j] for i, j in order], dim=1)[None]
        dt, B, C = (route.x_proj.weight @ sequence[0])[None].split([1, 16, 16], dim=1)
        y = selective_scan(
            sequence,
            route.dt_proj.weight @ dt,
            -route.A_log.exp(),
            B,
            C,
            route.D,
            None,
            route.dt_proj.bias,
            delta_softplus=True,
            backend="reference",
        )
        for step, (i, j) in enumerate(order):
            expected[0, i, j] += y[0, :, step]
    assert torch.allclose(module.scan(x), expected, atol=1e-12)


def test_ss2d_is_gated_and_normalised():
    torch.manual_seed(0)
    module, X = SS2D(4).double(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    x, z = F.conv2d(X, module.in_proj.weight).chunk(2, dim=1)
    x = F.silu(F.conv2d(x, module.conv2d.weight, module.conv2d.bias, padding=1, groups=6))
    scanned = module.scan(x.permute(0, 2, 3, 1))
    gated = module.out_norm(scanned).permute(0, 3, 1, 2) * F.silu(z)
    expected = F.conv2d(gated, module.out_proj.weight)
    assert torch.allclose(module(X), expected, atol=1e-12)


def test_aff_is_two_convolutions_over_all_levels():
    network = small(fusion="aff")
    aff, (low, middle, high) = (
        network.clff_level2,
        (torch.randn(1, c, s, s, dtype=torch.float64) for c, s in ((8, 8), (16, 4), (32, 2))),
    )
    joined = torch.cat([middle, low[..., ::2, ::2], high.repeat_interleave(2, 2).repeat_interleave(2, 3)], dim=1)
    assert torch.allclose(aff(middle, low, high), aff.conv2(aff.conv1(joined).relu()), atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_tell_their_modules(variant, tmp_path):
    network, image, path = small(**variant), images(16, 16), tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    untold = {name: value for name, value in variant.items() if name in ("scan", "slices")}
    assert torch.allclose(load_network(path, **untold).double()(image), network(image), atol=1e-12)


@pytest.mark.parametrize("vssm", ["xyscan", "ss2d"])
@pytest.mark.parametrize("num_blocks", [(0, 0, 1), (1, 0, 0)])
def test_weights_tell_levels_without_blocks(num_blocks, vssm, tmp_path):
    torch.save(XYScanNet(4, num_blocks, vssm=vssm).state_dict(), tmp_path / "weights.pth")
    network = load_network(tmp_path / "weights.pth")
    assert network.num_blocks == num_blocks and network.description["vssm"] == vssm


def test_weights_of_another_variant_are_refused(tmp_path):
    state = small(fusion="aff").state_dict()
    del state["clff_level1.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="unexpected, the first clff_level2.conv1.weight"):
        load_network(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "variant, message",
    [
        ({"vssm": "mamba"}, "vssm 'mamba' is unknown; choose one of xyscan, .*ss2d"),
        ({"fusion": "cat"}, "choose one of klff, aff, none"),
        ({"vssm": "ss2d", "scan": "bidirectional"}, "scans of its own"),
    ],
)
def test_what_cannot_be_is_refused(variant, message):
    with pytest.raises(ValueError, match=message):
        XYScanNet(8, (1, 1, 1), **variant)
