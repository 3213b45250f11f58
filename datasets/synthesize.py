"""Synthesises pairs of blurred and sharp images, in GoPro's layout, from photographs or from high-frame-rate video.

    python -m datasets.synthesize PHOTOS OUT --pairs_per_photo 8 --size 256     random camera shake over photographs
    python -m datasets.synthesize PHOTOS OUT --objects 3                        the same, with up to 3 moving objects
    python -m datasets.synthesize VIDEO OUT                                     averages of 7 to 13 consecutive frames
    python -m datasets.synthesize FRAMES OUT --frames                           the same, from a folder of frames
    python -m datasets.synthesize VIDEO OUT --step 3 --fewest 15 --most 45      overlapping, longer blur

Writes OUT/{train,test}/<photograph or clip>/{blur,sharp}/NNNNNN.png. Entire photographs or clips are held out for test.
OUT appears when it is complete. The same seed gives the same files with any number of workers.

Photographs: the scene is static and flat, and the camera moves with six degrees of freedom (see trajectory.py). Many
warped frames are averaged in linear light, then shot and read noise are added. Objects are cut from other photographs
and move on trajectories of their own. Video: frames are averaged as GoPro's authors did (Nah et al., CVPR 2017), and
the centre frame is the sharp image; --gamma 1 averages display values (GoPro's `blur`), 2.2 linear light (its
`blur_gamma`).
"""

import argparse
import logging
import math
import os
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .blur import add_noise, average, linear_photo, shaken_pair, to_8_bit
from .folder import new_folder, thread_pool
from .images import VIDEO_SUFFIXES, ImageError, read_rgb, read_size, write_png
from .layouts import existing_folder, image_names, list_images

logger = logging.getLogger(__name__)

LINEAR_LIGHT = 2.2


def synthesize_photos(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    pairs_per_photo: int = 8,
    size: int = 256,
    strength: float = 12.0,
    objects: int = 0,
    noise: float = 1.0,
    gamma: float = LINEAR_LIGHT,
    test_every: int = 5,
    test_photos: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Synthesise pairs from a folder of sharp photographs, by random camera shake.

    Args:
        source: folder of photographs.
        out: a folder that does not exist or is empty.
        size: height and width of the images in pixels.
        strength: mean blur length in pixels, at most 4 ``size``.
        objects: largest number of moving objects in a pair, each cut from another photograph of the same split.
        noise: standard deviation of the sensor noise in 8-bit levels at mid-grey.
        gamma: frames are averaged as value ** gamma.
        test_every: hold out every Nth photograph for test; 0 for none.
        test_photos: hold out these instead, by name without suffix.
        seed: of trajectories, crops and noise.
        workers: threads, None for one per core.
    Returns:
        {"train": number of pairs, "test": number of pairs}.
    Raises:
        ImageError: a photograph is unreadable or smaller than ``size``.
        ValueError: a number out of range, or an unknown name.
        FileExistsError: ``out`` is not empty.
    """
    numbers = 0 <= strength <= 4 * size and 0 <= noise < math.inf and 0 < gamma < math.inf  # not of NaN
    if pairs_per_photo < 1 or size < 8 or objects < 0 or seed < 0 or not numbers:
        raise ValueError(
            "expected pairs_per_photo >= 1, size >= 8, objects, noise and seed >= 0, gamma > 0, and strength from 0 to "
            "4 size"
        )
    photos = _photos(source, size)
    splits = _held_out(list(photos), test_every, test_photos)

    def make(name: str, folder: Path) -> Iterator[None]:
        photo = linear_photo(read_rgb(photos[name]), size, gamma)
        others = [path for other, path in photos.items() if splits[other] == splits[name] and other != name]
        for index in range(pairs_per_photo):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
            chosen = rng.integers(len(others), size=rng.integers(objects + 1)) if objects and others else ()
            pieces = [linear_photo(read_rgb(others[place]), size, gamma) for place in chosen]
            blurred, sharp = shaken_pair(photo, size, strength, rng, pieces)
            blurred = add_noise(blurred, noise, gamma, rng)
            _write_pair(folder, index + 1, to_8_bit(blurred, gamma), to_8_bit(sharp, gamma))
            yield

    return _make_all(make, splits, Path(out), workers, progress, len(photos) * pairs_per_photo)


def _photos(source: str | os.PathLike, size: int) -> dict[str, Path]:
    """The photographs in a folder by name; ImageError if there are none, or one is smaller than ``size``."""
    paths = list_images(existing_folder(source))
    names = [name.replace("/", "-") for name in image_names(paths)]  # subfolders joined by a dash
    photos = _without_clashes(zip(names, (Path(source) / path for path in paths), strict=True))
    if not photos:
        raise ImageError(f"{source}: no photographs found")
    blurred = next((path for path in photos.values() if path.parent.name in ("blur", "blur_gamma")), None)
    if blurred:
        raise ImageError(f"{blurred}: a blurred image of a data set; give a folder of sharp photographs alone")
    for path in photos.values():
        if min(read_size(path)) < size:
            raise ImageError(f"{path}: smaller than the {size}x{size} crop; choose a smaller size or leave it out")
    return photos


def synthesize_frames(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    fewest: int = 7,
    most: int = 13,
    step: int | None = None,
    gamma: float = 1.0,
    test_every: int = 5,
    test_photos: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Synthesise pairs from high-frame-rate video: averages of consecutive frames, and their centre frames.

    Args:
        source: a video file, a folder of frames (in the order of their names, 2 before 10), or a folder of several of
            either.
        fewest: smallest number of frames in an average.
        most: largest number of frames; each average has a random odd number in this range.
        step: average around every step-th frame, with overlap; None uses no frame twice.
        gamma: frames are averaged as value ** gamma.

    The other arguments, the result and the errors are those of ``synthesize_photos``, with clips for photographs.
    A clip with fewer frames than an average needs is an ImageError.
    """
    counts = [count for count in range(fewest, most + 1) if count % 2]
    if fewest < 3 or not counts or not 0 < gamma < math.inf or (step is not None and step < 1) or seed < 0:
        raise ValueError(
            "expected 3 <= fewest <= most with an odd number in that range, step >= 1, gamma > 0 and seed >= 0, "
            f"got {fewest}, {most}, {step}, {gamma} and {seed}"
        )
    clips = _clips(Path(source))
    splits = _held_out(list(clips), test_every, test_photos)

    def make(name: str, folder: Path) -> Iterator[None]:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        windows = _consecutive if step is None else partial(_overlapping, step=step)
        for centre, window in windows(_read_frames(clips[name]), counts, rng):
            _write_pair(folder, centre, average(window, gamma), window[len(window) // 2])
            yield
        if not (folder / "blur").exists():
            raise ImageError(f"{clips[name]}: fewer frames than an average of up to {counts[-1]} frames needs")

    return _make_all(make, splits, Path(out), workers, progress, None)


def _consecutive(
    frames: Iterable[np.ndarray], counts: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Consecutive windows of random lengths, as (index of the centre frame in the clip, frames)."""
    window, count = [], rng.choice(counts)
    for number, frame in enumerate(frames):
        window.append(frame)
        if len(window) == count:
            yield number - count // 2, window
            window, count = [], rng.choice(counts)


def _overlapping(
    frames: Iterable[np.ndarray], counts: Sequence[int], rng: np.random.Generator, step: int
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Windows of random lengths around every step-th frame that has enough neighbours for the longest."""
    reach = counts[-1] // 2
    widest = deque(maxlen=counts[-1])
    for number, frame in enumerate(frames):
        widest.append(frame)
        if number >= 2 * reach and (number - 2 * reach) % step == 0:
            half = rng.choice(counts) // 2
            yield number - reach, list(widest)[reach - half : reach + half + 1]


def _write_pair(folder: Path, number: int, blurred: np.ndarray, sharp: np.ndarray) -> None:
    write_png(folder / "blur" / f"{number:06d}.png", blurred)
    write_png(folder / "sharp" / f"{number:06d}.png", sharp)


# All pairs


def _make_all(
    make: Callable[[str, Path], Iterator[None]],
    splits: dict[str, str],
    out: Path,
    workers: int | None,
    progress: bool,
    total: int | None,
) -> dict[str, int]:
    """Run make(name, folder) for every scene in threads (NumPy and OpenCV release the GIL). Returns the pairs by
    split."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one thread a worker: OpenCV's own would compete
    try:
        # The threads end before the folder is given its name, or removed.
        with (
            new_folder(out) as folder,
            thread_pool(workers) as pool,
            tqdm(desc="Making pairs", total=total, unit="pair", disable=not progress) as bar,
        ):

            def run(name: str) -> int:
                pairs = 0
                for _ in make(name, folder / splits[name] / name):
                    pairs += 1
                    bar.update()
                return pairs

            made = dict(zip(splits, pool.map(run, splits), strict=True))
    finally:
        cv2.setNumThreads(threads)
    return {split: sum(pairs for name, pairs in made.items() if splits[name] == split) for split in ("train", "test")}


def _held_out(names: list[str], test_every: int, test_photos: Sequence[str] | None) -> dict[str, str]:
    """The split of each photograph or clip."""
    if test_photos is None:
        return {
            name: "test" if test_every and (place + 1) % test_every == 0 else "train"
            for place, name in enumerate(names)
        }
    unknown = sorted(set(test_photos) - set(names))
    if unknown:
        raise ValueError(f"unknown names to hold out: {', '.join(unknown)}; known are {', '.join(names[:20])}")
    return {name: "test" if name in test_photos else "train" for name in names}


def _without_clashes(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """As a dictionary; ImageError if two sources would be written under one name."""
    scenes: dict[str, Path] = {}
    for name, path in named:
        if name in scenes:
            raise ImageError(f"{scenes[name]} and {path} would both be called {name}; rename one of them")
        scenes[name] = path
    return scenes


# Clips


def _clips(source: Path) -> dict[str, Path]:
    """Clips by name: the source itself, or the clips in it."""
    if source.is_file():
        return {source.stem: source}
    inside = sorted(existing_folder(source).iterdir())
    videos = [(path.stem, path) for path in inside if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    folders = [
        (path.name, path) for path in inside if path.is_dir() and not path.name.startswith(".") and list_images(path)
    ]
    clips = _without_clashes(videos + folders)
    frames = _frames(source)
    if frames and not clips:
        return {source.resolve().name: source}
    if folders and (frames or not all(_frames(folder) for _, folder in folders)):
        raise ImageError(f"{source}: frames both here and in folders, or deeper; give a folder of clips, or one clip")
    if not clips:
        raise ImageError(f"{source}: neither videos ({', '.join(VIDEO_SUFFIXES)}) nor folders of frames found")
    return clips


def _frames(folder: Path) -> list[str]:
    """The images in a folder itself, in the order of the numbers in their names, padded with zeros or not."""
    names = [path for path in list_images(folder) if "/" not in path]
    return sorted(
        names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )


def _read_frames(clip: Path) -> Iterator[np.ndarray]:
    """The frames of a video file or of a folder of images, uint8 (H, W, 3) RGB."""
    if clip.is_dir():
        shape = None
        for path in _frames(clip):
            frame = read_rgb(clip / path)
            if frame.shape != (shape or frame.shape):
                raise ImageError(f"{clip / path}: shape {frame.shape} differs from that of earlier frames, {shape}")
            shape = frame.shape
            yield frame
        return
    video = cv2.VideoCapture(str(clip))
    try:
        if not video.isOpened():
            raise ImageError(f"{clip}: cannot be opened as a video")
        number, claimed = 0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        while True:
            more, frame = video.read()
            if not more:
                break
            number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if number < claimed:
            logger.warning("%s: %d of its %d frames can be read; it may be damaged", clip, number, claimed)
    finally:
        video.release()


# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if the source cannot be used."""
    options = vars(_parser().parse_args(arguments))
    source, out, frames = options.pop("source"), options.pop("out"), options.pop("frames")
    frames = frames or source.is_file()
    others = {"pairs_per_photo", "size", "strength", "objects", "noise"} if frames else {"fewest", "most", "step"}
    misplaced = set(options) & others
    if misplaced:
        _parser().error(f"--{misplaced.pop()} is for {'photographs' if frames else 'frames (see --frames)'}")
    try:
        counts = (synthesize_frames if frames else synthesize_photos)(source, out, progress=True, **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {counts['train']} pairs for train, {counts['test']} for test")
    return 0


def _parser() -> argparse.ArgumentParser:
    """Options that are not given are suppressed, so that the defaults are those of the functions above."""
    parser = argparse.ArgumentParser(
        "python -m datasets.synthesize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("source", type=Path, help="folder of photographs, video file, or folder of frames or clips")
    parser.add_argument("out", type=Path, help="output folder; must not exist or be empty")
    parser.add_argument("--frames", action="store_true", default=False, help="the source is a folder of frames")
    parser.add_argument(
        "--gamma", type=float, help="average value ** gamma (default: 2.2, linear light, for photographs; 1 for frames)"
    )
    held = parser.add_mutually_exclusive_group()
    held.add_argument(
        "--test_every", type=int, metavar="N", help="hold out every Nth photograph or clip, 0 for none (default 5)"
    )
    held.add_argument("--test_photos", nargs="+", metavar="NAME", help="hold out these instead, names without suffix")
    parser.add_argument("--seed", type=int, help="random seed (default 0)")
    parser.add_argument("--workers", type=int, help="threads (default: one per core)")
    photos = parser.add_argument_group("photographs")
    photos.add_argument("--pairs_per_photo", type=int, help="pairs from each photograph (default 8)")
    photos.add_argument("--size", type=int, help="height and width of the images (default 256)")
    photos.add_argument("--strength", type=float, help="mean blur length in pixels (default 12)")
    photos.add_argument("--objects", type=int, metavar="N", help="up to N moving objects in a pair (default 0)")
    photos.add_argument("--noise", type=float, help="sensor noise in 8-bit levels at mid-grey (default 1)")
    frames = parser.add_argument_group("frames")
    frames.add_argument("--fewest", type=int, help="smallest number of frames in an average (default 7)")
    frames.add_argument("--most", type=int, help="largest number of frames in an average (default 13)")
    frames.add_argument(
        "--step", type=int, help="average around every Nth frame (default: use no frame twice)", metavar="N"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
