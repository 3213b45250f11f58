"""Self-ensemble: the mean over the square's symmetries, by an independent listing, and symmetric itself."""

import json
from pathlib import Path

import pytest
import torch

from engine.predict.inference import Restorer
from engine.predict.self_ensemble import restore_ensemble
from engine.predict.test_set import predict
from tests.workplace import make_pairs

CPU = torch.device("cpu")


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
    # Multiples of 8: no padding turns with the image.
    images = images_of(16, 24)[:1]
    expected = sum(back(one.restore(turned)[0]) for turned, back in symmetries(images)) / 8
    restored = eight.restore(images)[0]
    assert torch.allclose(restored, expected, atol=1e-6)
    assert not torch.allclose(restored, one.restore(images)[0], atol=1e-4)
    assert eight.mode == f"{one.mode}, mean over eight flips and rotations"


@torch.no_grad()
def test_turns_with_its_image():
    torch.manual_seed(0)
    network, images = torch.nn.Conv2d(3, 3, 3, padding=1), images_of(16, 24)
    restored = restore_ensemble(network, images)
    for turned, back in symmetries(images):
        assert torch.allclose(back(restore_ensemble(network, turned)), restored, atol=1e-6)


def test_leaves_what_is_symmetric_already_alone():
    images = images_of(5, 9)
    torch.testing.assert_close(restore_ensemble(torch.tanh, images), torch.tanh(images))


def test_a_folder_never_mixes_images_with_and_without(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_pairs(tmp_path / "datasets" / "GoPro", train=0, test=1, size=(16, 24))
    arguments = ["--job_name", "none", "--device", "cpu", "--weights", str(weights)]
    predict("gopro", arguments)
    with pytest.raises(SystemExit):
        predict("gopro", [*arguments, "--self_ensemble"])
    assert "self_ensemble: None then, True now" in capsys.readouterr().err
    record = Path("results/none/images.json")  # as one from before the flag: without it
    record.write_text(
        json.dumps({key: value for key, value in json.loads(record.read_text()).items() if key != "self_ensemble"})
    )
    predict("gopro", arguments)
    predict("gopro", [*arguments, "--self_ensemble", "--overwrite"])
