"""Self-ensemble: the mean over the square's symmetries, by an independent listing, and symmetric itself."""
import pytest
import torch

from engine.ensemble import restore_ensemble
from engine.restorer import Restorer
from models import XYScanNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(XYScanNet(dim=8, num_blocks=(1, 1, 1)).state_dict(), path)
    return path


def images_of(height, width):
    """Grey enough that nothing restored is clamped."""
    return (torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) - 0.5) / 2


def symmetries(image):
    """The square's eight by turns and mirroring: (image, function that undoes it)."""
    for turns in range(4):
        yield torch.rot90(image, turns, (-2, -1)), lambda y, k=turns: torch.rot90(y, -k, (-2, -1))
        yield torch.rot90(image.flip(-1), turns, (-2, -1)), lambda y, k=turns: torch.rot90(y, -k, (-2, -1)).flip(-1)


@pytest.mark.parametrize("options", [{}, {"tile": 16, "overlap": 8}, {"streamed": False}])
def test_is_the_mean_over_the_eight_symmetries(weights, options):
    one, eight = (Restorer(weights, "none", CPU, self_ensemble=many, **options) for many in (False, True))
    images = images_of(24, 40)      # multiples of 8: no padding turns with the image
    expected = sum(back(one.restore(turned)[0]) for turned, back in symmetries(images)) / 8
    restored = eight.restore(images)[0]
    assert torch.allclose(restored, expected, atol=1e-6)
    assert not torch.allclose(restored, one.restore(images)[0], atol=1e-4)
    assert eight.way == f"{one.way}, mean over eight flips and turns"


def test_turns_with_its_image(weights):
    restorer, images = Restorer(weights, "none", CPU, self_ensemble=True), images_of(16, 24)
    for turned, back in symmetries(images):
        assert torch.allclose(back(restorer.restore(turned)[0]), restorer.restore(images)[0], atol=1e-6)


def test_leaves_what_is_symmetric_already_alone():
    images = images_of(5, 9)
    torch.testing.assert_close(restore_ensemble(torch.tanh, images), torch.tanh(images))
