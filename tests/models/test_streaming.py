"""Streaming: the whole network's result, band by band, without a map larger than the features."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models import XYScanNet, streaming
from models.blocks import Conv1x1, Depthwise3x3, GatedFFN
from models.fusion import KLFF
from models.mamba import S6
from models.ops.selective_scan import cpu
from models.streaming import stream, streams_exactly
from models.vssm import InterVSSM

needs_compiler = pytest.mark.skipif(bool(cpu.why_missing()), reason=f"cpu: {cpu.why_missing()}")


def network_of(dim: int = 8, kl_gate: str = "image", seed: int = 0, unshuffle: int = 1) -> XYScanNet:
    """Weights larger than a new network's, so that every part of it, the gates above all, tells in the result."""
    torch.manual_seed(seed)
    network = XYScanNet(dim, num_blocks=(1, 2, 1), kl_gate=kl_gate, unshuffle=unshuffle)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5 if weight.dim() > 1 else 1)
    return network.double().eval()


def images_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


SHAPES = [((1, 3, 45, 31), 4), ((2, 3, 30, 53), 12), ((1, 3, 8, 64), 16), ((3, 3, 33, 21), 64)]


@pytest.mark.parametrize(
    "kl_gate, unshuffle, shape, band",
    [
        *[("image", 1, *shape) for shape in SHAPES],
        *[(kl_gate, unshuffle, *SHAPES[1]) for kl_gate, unshuffle in (("elementwise", 1), ("batch", 1), ("image", 2))],
    ],
)
def test_equals_the_whole_network(kl_gate, unshuffle, shape, band):
    network, images = network_of(kl_gate=kl_gate, unshuffle=unshuffle), images_of(*shape)
    with torch.inference_mode():
        whole = network(images)
    streamed = stream(network, images, band)
    assert streamed.shape == whole.shape and (whole - images).abs().max() > 0.1
    assert (streamed - whole).abs().max() < 1e-9


@pytest.mark.parametrize(
    "variant", [{}, {"unshuffle": 2}, {"scan": "bidirectional"}, {"slices": "inter"}, {"num_blocks": (0, 0, 1)}]
)
@pytest.mark.parametrize("shape, band", [((2, 3, 30, 53), 8), ((1, 3, 65, 31), 32)])
def test_equals_the_whole_network_in_float32(variant, shape, band):
    """Parts of it run in C."""
    torch.manual_seed(0)
    network, images = XYScanNet(12, **{"num_blocks": (1, 2, 1), **variant}).eval(), images_of(*shape).float()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5 if weight.dim() > 1 else 1)
        whole = network(images)
    assert (stream(network, images, band) - whole).abs().max() < 1e-5 * (whole - images).abs().max()


@needs_compiler
@pytest.mark.parametrize(
    "kind, change",
    [
        (None, None),
        (GatedFFN, lambda self, x: self.project_out(self.dwconv(self.project_in(x)).chunk(2, dim=1)[0])),
        (S6, lambda self, u: self.out_proj(self.in_proj(u)[..., : self.out_proj.in_features])),
    ],
)
def test_an_edited_module_runs_itself(kind, change, monkeypatch):
    """And only that, also if it is edited after the first image: the others run in C on."""
    called = []
    for function in (streaming.feed_forward, streaming.s6, streaming.branches, streaming.gated_projection):
        name = function.__name__
        monkeypatch.setattr(streaming, name, lambda *a, f=function, name=name, **k: called.append(name) or f(*a, **k))
    network, images = network_of().float(), images_of(1, 3, 48, 40).float()
    stream(network, images, 8)
    if kind:
        monkeypatch.setattr(kind, "forward", change)
    stream(network, images, 8)  # compares the modules
    called.clear()
    with torch.inference_mode():
        whole = network(images)
    assert (stream(network, images, 8) - whole).abs().max() < 1e-4 * (whole - images).abs().max()
    assert ("feed_forward" in called) == (kind in (None, S6))
    assert ("s6" in called) == (kind is not S6)
    assert {"branches", "gated_projection"} <= set(called)


@needs_compiler
def test_an_edited_network_without_an_effect_yet_is_not_mistaken(monkeypatch):
    """Weights of zero agree with anything; and S6's recurrence is small in a new network."""
    network, images = network_of().float(), images_of(1, 3, 48, 40).float()
    monkeypatch.setattr(GatedFFN, "forward", lambda self, x: self.project_out(self.project_in(x)[:, : x.shape[1]]))
    weights = [module.project_out.weight for module in network.modules() if isinstance(module, GatedFFN)]
    kept = [weight.clone() for weight in weights]
    with torch.inference_mode():
        for weight in weights:
            weight.zero_()
    stream(network, images, 8)
    with torch.inference_mode():
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
        whole = network(images)
    assert (stream(network, images, 8) - whole).abs().max() < 1e-4 * (whole - images).abs().max()

    torch.manual_seed(0)
    network = XYScanNet(32, (1, 1, 1)).eval()
    assert streams_exactly(network)
    mamba = network.decoder_level1[0].intra.mamba
    with monkeypatch.context() as patched:
        scan = S6.scan
        patched.setattr(S6, "forward", lambda self, u: self.out_proj(0.9 * scan(self, self.in_proj(u))))
        with torch.inference_mode():
            features = torch.randn(1, 16, 9, 40)
            whole = mamba(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            streaming._scan_rows(network.decoder_level1[0].intra, features, band=8)
            assert torch.allclose(features, whole, rtol=1e-4)


@needs_compiler
def test_another_direction_given_later_is_followed():
    network, images = network_of().float(), images_of(1, 3, 24, 24).float()
    stream(network, images)  # S6 in C is compared with the module once
    for module in network.modules():
        if isinstance(module, S6):
            module.bidirectional = True
    with torch.inference_mode():
        assert (stream(network, images) - network(images)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError(""), RuntimeError("can't allocate memory"), MemoryError()], ids=type
)
def test_a_lack_of_memory_is_not_taken_for_an_edit(error, monkeypatch):
    def too_large(*_, **__):
        raise error

    monkeypatch.setattr(streaming, "stream", too_large)
    with pytest.raises(type(error)):
        streams_exactly(network_of())


def test_the_images_and_the_weights_stay_as_they_are():
    network, images = network_of(), images_of(1, 3, 24, 32)
    before = images.clone(), [weight.clone() for weight in network.parameters()]
    assert torch.equal(stream(network, images, 8), stream(network, images, 8))
    assert torch.equal(images, before[0])
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before[1], strict=True))


def test_mixed_precision_is_near_the_whole_network_in_mixed_precision():
    network, images = network_of().float(), images_of(1, 3, 24, 36).float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        whole, streamed = network(images), stream(network, images, 8)
    exact = stream(network, images, 8)
    assert (streamed - exact).abs().mean() < 1.5 * (whole - exact).abs().mean() + 1e-6


class Sizes(TorchDispatchMode):
    """Notes how many numbers every new tensor's memory holds."""

    def __init__(self):
        super().__init__()
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
        return result


def test_no_map_is_larger_than_the_features():
    """The whole network's largest map has four times the features' channels."""
    network, images = network_of(), images_of(1, 3, 64, 64)
    features = 8 * 64 * 64
    with torch.inference_mode(), Sizes() as whole:
        network(images)
    with Sizes() as streamed:
        stream(network, images, 8)
    assert max(whole.seen.values()) >= 2 * features
    assert max(streamed.seen.values()) == features


def test_without_halos_and_fusion_nothing_is_computed_twice():
    """Here a band holds the full image. KLFF computes its convolutions twice, since their results are not kept."""
    torch.manual_seed(0)
    network, images = XYScanNet(8, (1, 1, 1), fusion="none").double().eval(), images_of(1, 3, 24, 32)
    with FlopCounterMode(display=False) as whole, torch.inference_mode():
        network(images)
    with FlopCounterMode(display=False) as streamed:
        stream(network, images, 32)
    assert streamed.get_total_flops() == whole.get_total_flops() > 0


@pytest.mark.parametrize("band", [0, -4, 6])
def test_refuses_impossible_bands(band):
    with pytest.raises(ValueError, match=f"band must be a multiple of 4 rows and at least 4, got {band}"):
        stream(network_of(), images_of(1, 3, 16, 16), band)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"vssm": "ss2d"},
        {"scan": "bidirectional"},
        {"slices": "inter"},
        {"fusion": "aff"},
        {"fusion": "none"},
        {"unshuffle": 2},
    ],
)
def test_every_variant_is_known_to_stream_exactly(variant):
    torch.manual_seed(0)
    assert streams_exactly(XYScanNet(8, (1, 1, 1), **variant).eval())


@pytest.mark.parametrize(
    "change",
    [
        (KLFF, "gate", lambda self, current, other: 0.3),
        (InterVSSM, "dual_scanner", lambda self, F_h, F_v: (F_h.relu(), F_v)),
        (XYScanNet, "residual", lambda self, x: x),
        (Conv1x1, "forward", lambda self, x: 0.5 * torch.nn.Conv2d.forward(self, x)),
        (Depthwise3x3, "forward", lambda self, x: torch.nn.Conv2d.forward(self, x).relu()),
    ],
)
def test_a_changed_network_is_noticed(change, monkeypatch):
    for network in (network_of(), network_of().float()):
        assert streams_exactly(network)
        with monkeypatch.context() as patched:
            patched.setattr(*change)
            assert not streams_exactly(network)
