"""Local pooling: sliding means, and the network with them against the ordinary one."""

import pytest
import torch

from engine.predict.local_pooling import LocalInterVSSM, LocalPoolingError, local_mean, use_local_pooling
from models import XYScanNet
from models.fusion import KLFF
from models.vssm import InterVSSM


def network(**options) -> XYScanNet:
    torch.manual_seed(0)
    return XYScanNet(8, (1, 1, 1), **options).double().eval()


def images(height: int, width: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("size, window", [(7, 3), (8, 4), (5, 5), (4, 9), (9, 1)])
def test_each_position_has_the_mean_of_the_window_around_it(size, window):
    x = torch.randn(2, size, 3, dtype=torch.float64)
    means, index = local_mean(x, window, dim=1)
    assert means.shape == (2, max(1, size - window + 1), 3) and len(index) == size
    for position in range(size):
        first = min(max(position - window // 2, 0), max(size - window, 0))
        expected = x[:, first : first + window].mean(dim=1)
        assert torch.allclose(means[:, index[position]], expected, atol=1e-14)


def test_sliding_means_keep_fp32s_digits_over_long_rows():
    x = torch.rand(1, 100_000) + 100
    means, _ = local_mean(x, 50, dim=1)
    assert (means[0, -1] - x[0, -50:].double().mean()).abs() < 1e-5


@pytest.mark.parametrize("options", [{}, {"kl_gate": "elementwise"}, {"slices": "inter"}, {"fusion": "aff"}])
def test_a_window_over_the_whole_image_changes_nothing(options):
    ordinary, local, image = network(**options), network(**options), images(8, 16, count=2)
    use_local_pooling(local, 16)
    with torch.no_grad():
        assert torch.allclose(local(image), ordinary(image), rtol=0, atol=1e-14)
        local = network(**options)
        use_local_pooling(local, 8)
        assert not torch.allclose(local(image), ordinary(image))


def inter_scanner(window: int | None = None):
    """The first branch of an Inter-VSSM with a window; its results (1, 4, h, w)."""
    block = network().decoder_level1[0].inter
    if window:
        block.__class__, block.window = LocalInterVSSM, window
    return lambda F_h, F_v: block.dual_scanner(F_h, F_v)


def test_means_no_longer_reach_beyond_the_window():
    """The means over a row are all that carries one column's change into another column of the first branch."""
    F_h = torch.randn(1, 4, 6, 32, dtype=torch.float64)
    changed = F_h.clone()
    changed[..., 0] += 1
    with torch.no_grad():
        differs = {
            window: ((scan(changed, F_h)[0] - scan(F_h, F_h)[0]).abs().sum(dim=(0, 1, 2)) > 1e-12)
            for window in (None, 8)
            for scan in [inter_scanner(window)]
        }
    assert differs[None].all()
    assert differs[8][:5].all() and not differs[8][5:].any()


def test_in_an_image_that_repeats_every_window_has_the_mean_of_all():
    tile = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    F_h = F_v = tile.repeat(1, 1, 1, 4)
    with torch.no_grad():
        ordinary, local = inter_scanner()(F_h, F_v), inter_scanner(8)(F_h, F_v)
    for a, b in zip(local, ordinary, strict=True):  # the columns' means run over the four rows, which it covers
        assert torch.allclose(a, b, atol=1e-12)


def test_windows_are_those_of_the_levels_pixels():
    local = network()
    use_local_pooling(local, 16)
    assert [getattr(local, f"decoder_level{level}")[0].inter.window for level in (1, 2, 3)] == [16, 8, 4]
    assert (local.clff_level1.window, local.clff_level2.window) == (16, 8)
    local = network(unshuffle=2)
    use_local_pooling(local, 16)
    assert [getattr(local, f"decoder_level{level}")[0].inter.window for level in (1, 2, 3)] == [8, 4, 2]
    assert (local.clff_level1.window, local.clff_level2.window) == (8, 4)


@pytest.mark.parametrize("window", [0, 4, 30, -8])
def test_windows_that_cannot_be_are_refused(window):
    with pytest.raises(LocalPoolingError, match=f"a multiple of 8 pixels, got {window}"):
        use_local_pooling(network(), window)


@pytest.mark.parametrize(
    "options, reason", [({"kl_gate": "batch"}, "kl_gate batch"), ({"slices": "intra", "fusion": "none"}, "has neither")]
)
def test_networks_without_means_over_one_image_are_refused(options, reason):
    with pytest.raises(LocalPoolingError, match=reason):
        use_local_pooling(network(**options), 64)


@pytest.mark.parametrize("edited", ["InterVSSM.dual_scanner", "KLFF.gate"])
@pytest.mark.parametrize("window", [8, 320])
def test_an_edited_mean_is_not_lost(edited, window, monkeypatch):
    owner, name = {"InterVSSM": InterVSSM, "KLFF": KLFF}[edited.split(".")[0]], edited.split(".")[1]
    original = getattr(owner, name)

    def changed(self, a, b):
        result = original(self, a, b)
        return tuple(0.9 * part for part in result) if name == "dual_scanner" else 0.9 * result

    monkeypatch.setattr(owner, name, changed)
    with pytest.raises(LocalPoolingError, match="edited"):
        use_local_pooling(network(), window)
