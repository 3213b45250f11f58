"""ST-LPIPS against the published package's scores on three pairs, and the tolerance that gives it its name."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy import ndimage

import metrics.stlpips
from metrics.downloads import DownloadError
from metrics.stlpips import STLPIPS, blur_pool
from tests.metrics.images import GOLDEN, PAIRS, blurred, golden_pair, noise


@pytest.fixture(scope="module")
def stlpips() -> STLPIPS:
    return STLPIPS()


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_package(stlpips, name):
    assert stlpips(*golden_pair(name)) == pytest.approx(GOLDEN[name]["stlpips_alex"], abs=1e-6)


def test_names_what_it_is(stlpips):
    assert stlpips.name == "stlpips_alex"
    backbone = stlpips.facts["backbone"]
    assert backbone["package"] == "stlpips-pytorch 0.0.2 (weights only)"
    assert len(backbone["sha256"]) == 64 and backbone["file"] == "alex_shift_tolerant.pth"


def test_identity_and_symmetry(stlpips):
    x, y = golden_pair("p1")
    assert stlpips(x, x) == 0.0
    assert stlpips(x, y) == pytest.approx(stlpips(y, x), abs=1e-7)


def test_rises_as_blur_grows(stlpips):
    _, sharp = golden_pair("p4")
    scores = [stlpips(blurred(sharp, sigma), sharp) for sigma in (0.5, 1, 2, 4)]
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


def test_tolerates_a_shift_by_one_pixel(stlpips):
    _, sharp = golden_pair("p4")
    assert stlpips(sharp[:, 1:], sharp[:, :-1]) < 0.25 * stlpips(blurred(sharp, 2), sharp)


def test_a_batch_scores_each_pair_on_its_own(stlpips):
    pairs = [tuple(image[:64, :64] for image in golden_pair(name)) for name in PAIRS]
    scores = stlpips.batch(*map(list, zip(*pairs, strict=True)))
    assert scores == pytest.approx([stlpips(*pair) for pair in pairs], abs=1e-6)


def test_smallest_image_has_a_score(stlpips):
    assert 0 < stlpips(noise(32, 32, seed=1), noise(32, 32, seed=2)) < 10
    with pytest.raises(ValueError, match="stlpips_alex needs images of at least 32 x 32, got 32 x 31"):
        stlpips(noise(31, 32), noise(31, 32))


def test_blur_pool_is_a_binomial_filter_at_every_second_pixel():
    image = np.random.default_rng(0).normal(size=(12, 14))
    window = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = ndimage.correlate(np.pad(image, 2, mode="reflect"), window)[1:-1, 1:-1][::2, ::2]
    pooled = blur_pool(torch.from_numpy(image)[None, None].expand(1, 2, -1, -1))
    assert pooled.shape == (1, 2, 7, 8)
    assert pooled[0, 1].numpy() == pytest.approx(expected, abs=1e-12)


def test_without_the_weights_says_what_to_install(monkeypatch, tmp_path):
    with monkeypatch.context() as context:
        context.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DownloadError, match=r"stlpips-pytorch 0.0.2: pip install -e .\[metrics\]"):
            STLPIPS()
    monkeypatch.setattr(metrics.stlpips, "SHA256", "0" * 64)
    with pytest.raises(DownloadError, match="alex_shift_tolerant.pth is not there or is another file: pip install"):
        STLPIPS()
