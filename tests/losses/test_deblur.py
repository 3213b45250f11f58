"""The losses: the released implementation's values, their definitions, and what must never happen."""

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import scipy.ndimage
import torch

from losses import TERMS, ContrastLoss, DeblurLoss, charbonnier, contrast, edge, term
from losses.contrast import blur_mask, vgg19_features, vgg19_layers
from losses.edge import laplacian
from losses.terms import TermError
from metrics.psnr import psnr_torch
from tests.parity import fill, image

PARITY = json.loads((Path(__file__).parents[1] / "fixtures" / "parity" / "loss_parity.json").read_text())


@pytest.fixture(scope="module")
def features():
    layers = vgg19_layers()
    state = fill({f"features.{name}": value for name, value in layers.state_dict().items()}, PARITY["vgg_seed"])
    gain = {"weight": math.sqrt(2), "bias": 1}
    layers.load_state_dict(
        {name.removeprefix("features."): value * gain[name.rsplit(".")[-1]] for name, value in state.items()}
    )
    return layers


@pytest.fixture
def paper_loss(features, monkeypatch):
    """The paper's loss, with these features in place of VGG19's."""
    monkeypatch.setattr(contrast, "vgg19_features", lambda: features)
    return DeblurLoss()


def parity_images(case):
    shape, seed = case["shape"], case["seed"]
    sharp = image(shape, seed)
    weak = case.get("weak_blur", False)
    blurred = sharp + (0.04 if weak else 0.3) * image(shape, seed + 1)
    if weak:
        blurred[0, :, :32], blurred[1, :, :, :24] = sharp[0, :, :32], sharp[1, :, :, :24]
    else:
        half = shape[2] // 2, shape[3] // 2
        blurred[:, :, : half[0], : half[1]] = sharp[:, :, : half[0], : half[1]]
    restored = sharp + (0.02 if weak else 0.2) * image(shape, seed + 2)
    return restored.requires_grad_(), sharp, blurred


@pytest.mark.parametrize("case", PARITY["cases"], ids=str)
def test_values_and_gradient_are_the_released_ones(case, paper_loss):
    restored, sharp, blurred = parity_images(case)
    total, terms = paper_loss(restored, sharp, blurred)
    total.backward()
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: case[name] for name in ("charbonnier", "edge", "contrast")}, rel=1e-6
    )
    assert total.item() == pytest.approx(case["total"], rel=1e-6)
    assert restored.grad.norm().item() == pytest.approx(case["grad_norm"], rel=1e-5)


def test_charbonnier_by_hand():
    value = charbonnier(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert value.item() == pytest.approx((3 + 1e-3) / 2, rel=1e-6)


def test_laplacian_is_the_pyramids():
    """Against scipy's separable filter on one channel."""
    x = image((1, 1, 12, 10), 4).double()
    taps = [0.05, 0.25, 0.4, 0.25, 0.05]

    def smooth(a):
        for axis in (0, 1):
            a = scipy.ndimage.correlate1d(a, taps, axis=axis, mode="nearest")
        return a

    kept = smooth(x[0, 0].numpy())
    kept[1::2], kept[:, 1::2] = 0, 0
    expected = x[0, 0].numpy() - smooth(4 * kept)
    torch.testing.assert_close(laplacian(x)[0, 0], torch.from_numpy(expected))
    assert laplacian(torch.ones(1, 3, 8, 8))[..., 2:-2, 2:-2].abs().max() < 1e-6  # a flat image has no edges inside


def test_edge_of_equal_images_is_the_charbonnier_floor():
    x = image((1, 3, 16, 16), 0)
    assert edge(x, x).item() == pytest.approx(1e-3, rel=1e-4)


def test_mask_is_where_the_image_is_blurred():
    sharp = torch.zeros(1, 3, 16, 16)
    blurred = sharp.clone()
    blurred[..., :8] = 0.011
    blurred[..., 8:] = 0.009
    mask = blur_mask(sharp, blurred)
    assert mask.shape == (1, 1, 4, 4) and (mask[..., :2] == 1).all() and (mask[..., 2:] == 0).all()


def test_a_batch_without_blur_gives_zero_and_no_nan(features):
    restored, sharp = image((1, 3, 32, 32), 1).requires_grad_(), image((1, 3, 32, 32), 2)
    value = ContrastLoss(features)(restored, sharp, sharp)
    value.backward()
    assert value.item() == 0 and (restored.grad == 0).all()


def test_restored_equal_to_blurred_is_large_but_finite(features):
    sharp = image((1, 3, 32, 32), 2)
    blurred = (sharp + 0.2).requires_grad_()
    value = ContrastLoss(features)(blurred, sharp, blurred.detach())
    value.backward()
    assert 1e3 < value.item() < math.inf and torch.isfinite(blurred.grad).all()


def test_shares_of_a_batch_average_to_the_batchs_loss(paper_loss):
    """Shares with very different amounts of blur: one loss however the batch is split."""
    sharp = image((4, 3, 32, 32), 3)
    blurred = sharp + 0.3 * image((4, 3, 32, 32), 4)
    blurred[0], blurred[1, :, :20] = sharp[0], sharp[1, :, :20]
    restored = sharp + 0.1 * image((4, 3, 32, 32), 5)
    loss = paper_loss
    loss.weights["contrast"] = 1
    whole, _ = loss(restored, sharp, blurred)
    mean_sum = sum(loss.mask_sum(sharp[k : k + 2], blurred[k : k + 2]) for k in (0, 2)) / 2
    shares = [loss(restored[k : k + 2], sharp[k : k + 2], blurred[k : k + 2], mean_sum)[0] for k in (0, 2)]
    assert (sum(shares) / 2).item() == pytest.approx(whole.item(), rel=1e-6)
    naive = sum(loss(restored[k : k + 2], sharp[k : k + 2], blurred[k : k + 2])[0] for k in (0, 2)) / 2
    assert abs(naive.item() - whole.item()) > 1e-5


def test_frozen_features_stay_frozen_and_move_with_the_loss(paper_loss):
    features = paper_loss.terms["contrast"].features
    assert not features.training and {id(p) for p in features.parameters()} == {id(p) for p in paper_loss.parameters()}
    assert not any(p.requires_grad for p in paper_loss.parameters())


def test_weight_zero_needs_no_vgg():
    loss = DeblurLoss({"charbonnier": 1, "edge": 0.05, "contrast": 0})
    total, terms = loss(*[image((1, 3, 16, 16), k) for k in range(3)])
    assert set(terms) == {"charbonnier", "edge"} and torch.isfinite(total)


def test_a_term_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setitem(TERMS, "mine", lambda restored, sharp: (restored - sharp).abs())
    restored, sharp = image((1, 3, 16, 16), 0), image((1, 3, 16, 16), 1)
    with pytest.raises(TermError, match=r"mine has the shape \(1, 3, 16, 16\)"):
        DeblurLoss({"mine": 1})(restored, sharp, sharp)


def test_the_squared_error_is_what_psnr_counts():
    restored, sharp = image((1, 3, 16, 16), 0), image((1, 3, 16, 16), 1)
    total, terms = DeblurLoss({"mse": 1})(restored, sharp, sharp)
    assert terms == {"mse": total}
    assert -10 * math.log10(total.item()) == pytest.approx(psnr_torch(restored + 0.5, sharp + 0.5).item(), rel=1e-5)


def test_a_new_term_is_a_function_or_a_module_that_also_sees_the_blurred_image():
    with mock.patch.dict(TERMS):  # takes the new ones out again

        @term("l1")
        def l1(restored, sharp):
            return (restored - sharp).abs().mean()

        @term("distance")
        class Distance(torch.nn.Module):
            def forward(self, restored, sharp, blurred, mask_sum):
                return (restored - blurred).abs().mean()

        restored, sharp, blurred = (image((1, 3, 16, 16), k) for k in range(3))
        total, terms = DeblurLoss({"mse": 1, "l1": 0.5, "distance": 2})(restored, sharp, blurred)
        assert list(terms) == ["mse", "l1", "distance"]
        expected = terms["mse"] + 0.5 * (restored - sharp).abs().mean() + 2 * (restored - blurred).abs().mean()
        torch.testing.assert_close(total, expected)
        with pytest.raises(ValueError, match="l1"):
            term("l1")(l1)


def test_vgg_weights_from_the_file(tmp_path, features):
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg19.pth")
    loaded = vgg19_features(tmp_path / "vgg19.pth")
    assert torch.equal(loaded[10].weight, features[10].weight)


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, state: path.write_bytes(b""),
        lambda path, state: path.write_bytes(path.read_bytes()[:5000]),
        lambda path, state: path.write_bytes(b"<html>404</html>"),
        lambda path, state: one_bit(path),
        lambda path, state: (path.unlink(), path.mkdir()),
        lambda path, state: torch.save([1], path),
        lambda path, state: torch.save({"features.0.weight": 3}, path),
        lambda path, state: torch.save({**state, "code": Code()}, path),
        lambda path, state: torch.save({name: value for name, value in state.items() if "10" not in name}, path),
        lambda path, state: torch.save({**state, "features.0.bias": torch.zeros(3)}, path),
        lambda path, state: torch.save({**state, "features.0.bias": torch.full((64,), math.nan)}, path),
        lambda path, state: torch.save({**state, "features.0.bias": torch.zeros(64, dtype=torch.int32)}, path),
        lambda path, state: torch.save({**state, "features.0.bias": torch.zeros(64).to_sparse()}, path),
        lambda path, state: torch.save({**state, "features.0.bias": torch.zeros(64, device="meta")}, path),
    ],
    ids=[
        "empty",
        "cut short",
        "html",
        "one bit",
        "folder",
        "list",
        "numbers",
        "code",
        "incomplete",
        "shape",
        "nan",
        "int",
        "sparse",
        "meta",
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_wrong_vgg_file_is_named_in_one_line_with_a_way_out(tmp_path, features, spoil):
    path = tmp_path / "vgg19.pth"
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state, path)
    spoil(path, state)
    with pytest.raises(contrast.FeaturesError) as caught:
        vgg19_features(path)
    message = str(caught.value)
    assert str(path) in message and "loss.contrast_weight=0" in message and "\n" not in message


def test_a_vgg_file_downloaded_before_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / contrast.VGG19_FILE.name
    path.parent.mkdir(parents=True), path.write_bytes(b"half a file")
    with pytest.raises(contrast.FeaturesError) as caught:
        vgg19_features(tmp_path / "missing.pth")
    assert str(path) in str(caught.value)


def test_another_vgg_file_than_torchvisions_is_remarked(tmp_path, features, caplog):
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "vgg19.pth")
    vgg19_features(tmp_path / "vgg19.pth")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_missing_vgg_weights_name_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match=r"vgg19-dcbb9e9d\.pth.*download.*no network.*loss\.contrast_weight=0"):
        vgg19_features(tmp_path / "missing.pth")


def test_vgg_weights_are_torchvisions():
    from torchvision.models import VGG19_Weights

    assert contrast.VGG19_URL == VGG19_Weights.IMAGENET1K_V1.url


def test_vgg_layers_are_torchvisions():
    from torchvision.models.vgg import cfgs, make_layers

    theirs = make_layers(cfgs["E"], batch_norm=False)[:12]
    assert str(theirs) == str(vgg19_layers())
