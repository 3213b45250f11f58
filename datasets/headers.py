"""A check of all image headers, before a run starts."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from tqdm import tqdm

from .images import ImageError, read_size
from .layouts import LayoutError, Pair

THREADS = 16


def check_headers(pairs: Sequence[Pair], patch_size: int | None = None, progress: bool = False) -> None:
    """Read the header of every image, so that a bad file stops a run at its start and not hours later.

    Args:
        patch_size: smallest allowed height and width; None for any.
        progress: show a progress bar.
    Raises:
        ImageError: an image is missing or truncated.
        LayoutError: an image differs in size from its partner, or is smaller than the patch. The message names the
            first problem and counts the others.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(_header_problem, pairs, repeat(patch_size))
        bar = tqdm(results, "Reading image headers", len(pairs), unit="pair", disable=not progress, leave=False)
        problems = [problem for problem in bar if problem is not None]
    if problems:
        more = len(problems) - 1
        raise type(problems[0])(f"{problems[0]}" + (f" (and {more} more of {len(pairs)} pairs)" if more else ""))


def _header_problem(pair: Pair, patch_size: int | None) -> ValueError | None:
    try:
        size = common_size(pair.blurred, pair.sharp)
    except (ImageError, LayoutError) as error:
        return error
    if patch_size is not None and min(size) < patch_size:
        return LayoutError(f"{pair.blurred}: {_times(size)} pixels, smaller than the patch of {patch_size}")
    return None


def common_size(image: Path, sharp: Path | None) -> tuple[int, int]:
    """(height, width) of an image and its sharp one, if there is one, from their headers.

    Raises:
        ImageError: an image is missing or truncated.
        LayoutError: their sizes differ.
    """
    size = read_size(image)
    if sharp is not None and (other := read_size(sharp)) != size:
        raise LayoutError(f"{image}: {_times(size)} pixels, but its sharp image {sharp} has {_times(other)}")
    return size


def _times(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
