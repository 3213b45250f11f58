"""Pairs as tensors: reproducible crops, full images, and the check of headers before a run."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.headers import check_headers
from datasets.images import ImageError
from datasets.layouts import LayoutError, Pair, find_pairs
from datasets.paired import PairedCrops, WholePairs
from datasets.stream import BatchStream
from engine.train.data import worker_init
from tests.datasets.conftest import save, textured


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Six pairs of two sizes; the sharp image is the blurred one + 1 in every value."""
    for number in range(6):
        image = textured(20, 26 + number % 2, number) // 2
        save(tmp_path / "blur" / f"{number}.png", image)
        save(tmp_path / "sharp" / f"{number}.png", image + 1)
    return find_pairs(tmp_path)


def test_crops_are_augmented_windows_of_both_images(pairs: list[Pair]) -> None:
    crops = PairedCrops(pairs, 12, seed=1)
    assert len(crops) == 6
    whole = {index: WholePairs(pairs)[index][0].numpy() for index in range(6)}
    for epoch in range(4):
        for index in range(6):
            blurred, sharp = crops[epoch, index]
            for image in (blurred, sharp):
                assert image.shape == (3, 12, 12) and image.dtype == torch.uint8 and image.is_contiguous()
            assert torch.equal(blurred + 1, sharp)
            # Somewhere in the image, in one of the eight orientations.
            variants = [
                np.rot90(flipped, turns, (1, 2))
                for flipped in (blurred.numpy(), blurred.numpy()[:, ::-1])
                for turns in range(4)
            ]
            windows = np.lib.stride_tricks.sliding_window_view(whole[index], (3, 12, 12))[0]
            assert any(np.any(np.all(windows == variant, axis=(2, 3, 4))) for variant in variants)


def test_a_crop_depends_on_seed_epoch_and_index_alone(pairs: list[Pair]) -> None:
    first, again = PairedCrops(pairs, 8, seed=1), PairedCrops(pairs, 8, seed=1)
    np.random.seed(0)
    torch.manual_seed(0)
    crop = first[5, 2]
    for key in ((0, 0), (5, 1), (5, 3)):
        again[key]
    assert all(torch.equal(a, b) for a, b in zip(crop, again[5, 2], strict=True))
    others = [first[6, 2], first[5, 4], PairedCrops(pairs, 8, seed=2)[5, 2]]
    assert not any(torch.equal(crop[0], other[0]) for other in others)


@pytest.mark.parametrize("start, workers", [("fork", 2), ("spawn", 1)])  # a spawned one imports for seconds
def test_workers_change_nothing(pairs: list[Pair], start: str, workers: int) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")

    def batches(**options: object) -> list[torch.Tensor]:
        loader = DataLoader(PairedCrops(pairs, 8, seed=1), batch_sampler=BatchStream(6, 4, 1, 0, 5), **options)
        return [torch.stack(batch) for batch in loader]

    alone = batches()
    together = batches(num_workers=workers, worker_init_fn=worker_init, multiprocessing_context=start)
    assert len(alone) == 5 and all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_worker_init_stops_opencv_threads() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(_threads_after_worker_init).result() <= 1


def _threads_after_worker_init() -> int:
    cv2.setNumThreads(4)
    worker_init(0)
    return cv2.getNumThreads()


def test_errors_while_training_name_the_file(pairs: list[Pair]) -> None:
    with pytest.raises(ImageError, match="blur/2.png: cannot crop 21x21 pixels"):
        PairedCrops(pairs, 21, seed=1)[0, 2]
    pairs[4].sharp.write_bytes(pairs[4].sharp.read_bytes()[:100])
    with pytest.raises(ImageError, match="sharp/4.png: truncated"):
        PairedCrops(pairs, 8, seed=1)[0, 4]


def test_whole_pairs(pairs: list[Pair]) -> None:
    for index, (blurred, sharp) in enumerate(DataLoader(WholePairs(pairs), batch_size=None)):
        assert blurred.shape == (3, 20, 26 + index % 2) and blurred.dtype == torch.uint8
        expected = cv2.imread(str(pairs[index].blurred))[..., ::-1].transpose(2, 0, 1)
        assert np.array_equal(blurred, expected) and torch.equal(blurred + 1, sharp)


def test_good_headers_pass(pairs: list[Pair], capsys: pytest.CaptureFixture) -> None:
    check_headers(pairs, 20)
    assert capsys.readouterr().err == ""
    check_headers([*pairs, Pair("alone", pairs[0].blurred, None)], progress=True)
    assert "Reading image headers:   0%|          | 0/7" in capsys.readouterr().err


def test_bad_headers_are_named_and_counted(pairs: list[Pair]) -> None:
    with pytest.raises(LayoutError, match=r"blur/0.png: 26x20 pixels, smaller than the patch of 21 \(and 5 more of 6"):
        check_headers(pairs, 21)
    save(pairs[3].sharp, textured(20, 25, 0))
    with pytest.raises(LayoutError, match=r"blur/3.png: 27x20 pixels, but its sharp image .*sharp/3.png has 25x20$"):
        check_headers(pairs)
    pairs[5].blurred.unlink()
    pairs[2].sharp.write_bytes(pairs[2].sharp.read_bytes()[:-5])
    with pytest.raises(ImageError, match=r"sharp/2.png: truncated.*\(and 2 more of 6 pairs\)"):
        check_headers(pairs)
