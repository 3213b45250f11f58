"""The whole network: the released implementation's numbers, sizes, independence of images, gradients."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.predict.formats import faster_tracing
from models import XYScanNet, xyscannet, xyscannet_s, xyscannet_t, xyscannetp
from models.ops.selective_scan import cpu
from tests.parity import fill, image

PARITY = np.load(Path(__file__).parents[1] / "fixtures" / "parity" / "model_parity.npz")
CASES = json.loads(str(PARITY["meta"]))
needs_compiler = pytest.mark.skipif(bool(cpu.why_missing()), reason=f"cpu: {cpu.why_missing()}")


@functools.cache
def state(dim: int, num_blocks: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = XYScanNet(dim, num_blocks)
    return fill(network.state_dict(), seed)


def build(case: dict, dtype=torch.float64, **options) -> XYScanNet:
    network = XYScanNet(case["dim"], case["num_blocks"], kl_gate="batch", **options)
    network.load_state_dict(state(case["dim"], tuple(case["num_blocks"]), case["seed"]))
    return network.to(dtype)


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_outputs_are_the_released_ones(number, backend):
    case = CASES[number]
    network = build(case, scan_backend=backend)
    with torch.no_grad():
        out = network(image(case["shape"], case["seed"] + 1).double())
    np.testing.assert_allclose(out.numpy(), PARITY[f"{number}.out"], rtol=0, atol=1e-6)
    assert sum(p.numel() for p in network.parameters()) == case["params"]


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_compiler)])
def test_outputs_in_float32(number, backend):
    case = CASES[number]
    with torch.no_grad():
        out = build(case, torch.float32, scan_backend=backend)(image(case["shape"], case["seed"] + 1))
    np.testing.assert_allclose(out.numpy(), PARITY[f"{number}.out"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("number", [k for k, case in enumerate(CASES) if "grad_norms" in case])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_gradients_are_the_released_ones(number, backend):
    case = CASES[number]
    network = build(case, scan_backend=backend)
    x = image(case["shape"], case["seed"] + 1).double().requires_grad_()
    out = network(x)
    loss = (out * image(out.shape, case["seed"] + 2).double()).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), PARITY[f"{number}.grad_input"], rtol=0, atol=1e-8)
    norms = {name: parameter.grad.norm().item() for name, parameter in network.named_parameters()}
    assert norms == pytest.approx(case["grad_norms"], rel=1e-6)


def test_names_and_their_order_are_the_released_ones():
    case = CASES[0]
    names = [name for name, _ in XYScanNet(case["dim"], case["num_blocks"]).named_parameters()]
    assert names == list(case["grad_norms"])


@pytest.mark.parametrize(
    "build, count",
    [(xyscannet_t, 1_266_112), (xyscannet_s, 7_301_952), (xyscannet, 16_155_072), (xyscannetp, 63_514_368)],
)
def test_parameter_counts(build, count):
    with torch.device("meta"):
        network = build()
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.fixture(scope="module")
def small() -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1)).double()


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (13, 22), (31, 17)])
def test_any_size_of_image(small, size):
    x = torch.rand(1, 3, *size, dtype=torch.float64) - 0.5
    out = small(x)
    assert out.shape == x.shape and torch.isfinite(out).all()


def test_padding_is_reflection_to_a_multiple_of_4_cropped_back(small):
    x = torch.rand(1, 3, 14, 21, dtype=torch.float64) - 0.5
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, 2), (0, 3)), mode="reflect"))
    torch.testing.assert_close(small(x), small(padded)[..., :14, :21])


def test_unshuffled_squares_of_pixels_are_twelve_channels_of_a_network_at_half_the_size():
    torch.manual_seed(0)
    network, inner = XYScanNet(8, (1, 1, 1), unshuffle=2).double(), XYScanNet(8, (1, 1, 1)).double()
    inner.patch_embed, inner.output = network.patch_embed, network.output
    inner.load_state_dict(network.state_dict())
    image = torch.rand(2, 3, 24, 40, dtype=torch.float64) - 0.5
    squares = image.unflatten(2, (12, 2)).unflatten(4, (20, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    added = inner.residual(squares)  # (2, 12, 12, 20)
    added = added.unflatten(1, (3, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)  # (2, 3, 24, 40)
    torch.testing.assert_close(network(image), image + added)


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (33, 18)])
def test_any_size_of_image_unshuffled(size):
    torch.manual_seed(0)
    network = XYScanNet(8, (1, 1, 1), unshuffle=2).double()
    image = torch.rand(1, 3, *size, dtype=torch.float64) - 0.5
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)), mode="reflect")
    out = network(image)
    assert out.shape == image.shape and torch.isfinite(out).all()
    torch.testing.assert_close(out, network(torch.from_numpy(padded))[..., : size[0], : size[1]])


def test_an_image_does_not_depend_on_its_neighbours(small):
    x = torch.rand(3, 3, 16, 12, dtype=torch.float64) - 0.5
    torch.testing.assert_close(small(x)[1:2], small(x[1:2]), rtol=1e-12, atol=1e-12)


def test_batch_gate_depends_on_the_neighbours():
    network = build(CASES[0])
    x = image((2, 3, 16, 16), 5).double()
    assert (network(x)[:1] - network(x[:1])).abs().max() > 1e-6


def test_image_gate_equals_the_released_one_for_one_image():
    case = CASES[1]
    network = XYScanNet(case["dim"], case["num_blocks"], kl_gate="image").double()
    network.load_state_dict(build(case).state_dict())
    with torch.no_grad():
        out = network(image(case["shape"], case["seed"] + 1).double())
    np.testing.assert_allclose(out.numpy(), PARITY["1.out"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_every_parameter_gets_a_gradient(size):
    network = XYScanNet(8, (1, 1, 1))
    network(torch.rand(2, 3, *size) - 0.5).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_bfloat16_autocast_stays_near(small):
    network = XYScanNet(8, (1, 1, 1))
    network.load_state_dict(small.state_dict())
    x = torch.rand(1, 3, 32, 32) - 0.5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network(x).float()
    with torch.no_grad():
        full = network(x)
    assert 0 < (half - full).abs().max() < 0.02


@needs_compiler
def test_gradients_in_float32_are_those_in_float64():
    """Through every native kernel: the scan, both convolutions."""
    case, gradients = CASES[0], []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        network = build(case, dtype, scan_backend=backend)
        out = network(image(case["shape"], case["seed"] + 1).to(dtype))
        (out * image(out.shape, case["seed"] + 2).to(dtype)).mean().backward()
        gradients.append({name: p.grad.double() for name, p in network.named_parameters()})
    for name, exact in gradients[1].items():
        assert (gradients[0][name] - exact).norm() < 1e-4 * exact.norm(), name


def test_checkpointed_activations_give_the_same_numbers_and_keep_less():
    results = []
    for checkpoint_activations in (False, True):
        torch.manual_seed(0)
        network, kept = XYScanNet(8, (2, 1, 1), checkpoint_activations=checkpoint_activations), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            out = network(image((1, 3, 16, 16), 5))
        out.square().mean().backward()
        results.append((out, sum(kept), [p.grad for p in network.parameters()]))
    (out, kept, gradients), (out_again, kept_again, gradients_again) = results
    assert torch.equal(out, out_again) and kept_again < kept / 3
    for gradient, again in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(gradient, again)


@pytest.mark.slow
def test_compiles_to_one_graph():
    """Nothing in the network breaks torch.compile's graph; the scan is one opaque operation in it."""
    network, x = XYScanNet(8, (0, 0, 1)), torch.rand(1, 3, 16, 12) - 0.5
    with torch.inference_mode(), faster_tracing:
        expected = network(x)
        torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("bad", [(1, 1, 16, 16), (3, 16, 16), (1, 3, 7, 16)])
def test_images_of_another_shape_are_refused(small, bad):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\) with H, W >= 8"):
        small(torch.zeros(bad, dtype=torch.float64))


@pytest.mark.parametrize(
    "options", [{"dim": 7}, {"num_blocks": (1, 1)}, {"num_blocks": (-1, 1, 1)}, {"num_blocks": (0, 0, 0)}]
)
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="dim must be even"):
        XYScanNet(**options)
