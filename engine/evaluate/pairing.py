"""Pairs restored images with a data set's own by name, whatever the layout of either side.

A name is taken apart into words at / _ - and the words that only say what an image is (blur, sharp, gt, testA, …) are
dropped, so that GOPR0384_11_00/000001, GOPR0384_11_00/blur/000001 and GOPR0384_11_00-000001 are one. What is left over
is paired where one name ends with the other, as 000001 and GOPR0384_11_00/000001 do, if only one fits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from datasets.headers import common_size
from datasets.images import ImageError
from datasets.layouts import LayoutError, find_pairs, list_images

KINDS = {"blur", "blurred", "blurry", "sharp", "gt", "traina", "trainb", "testa", "testb"}
BLURRED_KINDS = {"blur", "blurred", "blurry", "traina", "testa"}
READERS = 8  # threads that read headers

Words = tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A restored image and what it is scored against, under the name of the data set's image."""

    name: str
    restored: Path
    sharp: Path | None
    blurred: Path | None


@dataclass
class Pairing:
    """The samples, sorted by name, and lists of the images that could not be paired, with the reason."""

    samples: list[Sample]
    missing: list[str] = field(default_factory=list)  # names in the data set that have no restored image
    extra: list[str] = field(default_factory=list)  # restored images that the data set does not know
    wrong_shape: list[str] = field(default_factory=list)  # pairs of two sizes, and files that are damaged
    by_ending: list[str] = field(default_factory=list)  # pairs whose names differ by more than their layout

    def complaints(self) -> str:
        """What is missing, extra or of a wrong shape, named; an empty text where nothing is."""
        parts = (
            (self.missing, "have no restored image"),
            (self.extra, "restored images have no counterpart in the data set"),
            (self.wrong_shape, "are damaged or differ in size from their sharp image"),
        )
        return "\n".join(f"{len(names)} {what}:{listed(names)}" for names, what in parts if names)


def listed(names: list[str], count: int = 10) -> str:
    """The first few, one a line."""
    lines = [*names[:count], *([f"… and {len(names) - count} more"] if len(names) > count else [])]
    return "".join(f"\n    {line}" for line in lines)


def find_samples(restored: Path, truth: list[Path], variant: str | None, sharp_needed: bool) -> Pairing:
    """Pairs a folder of restored images with a data set.

    Args:
        truth: a data set or its test split in any layout known, a folder of sharp images, or two folders, blurred and
            sharp. Without any, which is enough where `sharp_needed` is false, every image of the folder is a sample.
        variant: "J" or "R", where RealBlur's two data sets lie in one folder.

    Raises:
        LayoutError: a folder that is missing or empty, a data set without sharp images where they are needed, names
            that fit several images.
    """
    if not restored.is_dir():
        raise LayoutError(f"{restored}: no such folder of restored images")
    images = list_images(restored)
    paths = {str(Path(path).with_suffix("")): restored / path for path in images}
    if not paths or len(paths) < len(images):
        raise LayoutError(f"{restored}: " + ("two images differ in nothing but their suffix" if paths else "no images"))
    if not truth:
        return _check_sizes(Pairing([Sample(name, path, None, None) for name, path in sorted(paths.items())]))
    references = _references(truth, variant, sharp_needed)
    partner = match(paths, references, f"{restored} and {', '.join(map(str, truth))}")
    samples = [Sample(name, paths[partner[name]], *references[name]) for name in sorted(partner)]
    pairing = Pairing(
        samples,
        sorted(references.keys() - partner.keys()),
        sorted(str(paths[name]) for name in paths.keys() - set(partner.values())),
    )
    pairing.by_ending = [
        f"{partner[name]} is matched to {name}" for name in sorted(partner) if words(partner[name]) != words(name)
    ]
    return _check_sizes(pairing)


def _references(
    truth: list[Path], variant: str | None, sharp_needed: bool
) -> dict[str, tuple[Path | None, Path | None]]:
    """(sharp, blurred) by name."""
    pairs = find_pairs(truth) if len(truth) == 2 else find_pairs(truth[0], "test", variant=variant)
    if all(pair.sharp for pair in pairs) or not sharp_needed:
        return {pair.name: (pair.sharp, pair.blurred) for pair in pairs}
    root = truth[0]
    folders = {part.lower() for pair in pairs for part in (root.name, *pair.blurred.relative_to(root).parts[:-1])}
    if folders & BLURRED_KINDS:
        raise LayoutError(f"{root}: has blurred images, but no sharp ones to score against")
    return {pair.name: (pair.blurred, None) for pair in pairs}  # one folder of images, the sharp ones


def match(restored: Iterable[str], references: Iterable[str], where: str) -> dict[str, str]:
    """The restored image's name by the reference's. Raises LayoutError, with `where`, for names that fit several."""
    restored_of, reference_of = _by_words(restored, where), _by_words(references, where)
    partner = {reference_of[key]: restored_of[key] for key in reference_of.keys() & restored_of.keys()}
    left = {key for key in restored_of if key not in reference_of}
    by_last = defaultdict(list)
    for key in left:
        by_last[key[-1]].append(key)
    taken: dict[Words, Words] = {}
    for key in sorted(reference_of.keys() - restored_of.keys()):
        fitting = [other for other in by_last[key[-1]] if _ends(key, other) or _ends(other, key)]
        for other in fitting:
            if len(fitting) > 1 or other in taken:
                both = sorted({restored_of[name] for name in fitting})
                raise LayoutError(
                    f"{where}: pairing by name is ambiguous, {' and '.join(both)} may be "
                    f"{' and '.join(sorted({reference_of[k] for k in (key, taken.get(other, key))}))}; "
                    "give the restored images the data set's own names"
                )
            taken[other] = key
            partner[reference_of[key]] = restored_of[other]
    return partner


def words(name: str) -> Words:
    """What tells an image from others: the words of its relative path without those that say what kind it is."""
    everything = tuple(word for word in re.split(r"[/\\_\-]+", name) if word)
    return tuple(word for word in everything if word.lower() not in KINDS) or everything or (name,)


def _ends(longer: Words, shorter: Words) -> bool:
    return longer[len(longer) - len(shorter) :] == shorter if len(longer) > len(shorter) else False


def _by_words(names: Iterable[str], where: str) -> dict[Words, str]:
    by_words: dict[Words, str] = {}
    for name in names:
        other = by_words.setdefault(words(name), name)
        if other != name:
            raise LayoutError(
                f"{where}: {other} and {name} have the same name, so pairing is ambiguous; a folder of "
                "restored images holds one image for each of the data set's"
            )
    return by_words


def _check_sizes(pairing: Pairing) -> Pairing:
    """Moves the samples whose files are damaged or of two sizes to those of a wrong shape; reads headers only."""
    with ThreadPoolExecutor(READERS) as pool:
        wrong = list(pool.map(_what_is_wrong, pairing.samples))
    pairing.wrong_shape = [why for why in wrong if why]
    pairing.samples = [sample for sample, why in zip(pairing.samples, wrong, strict=True) if not why]
    return pairing


def _what_is_wrong(sample: Sample) -> str | None:
    try:
        common_size(sample.restored, sample.sharp)
    except (ImageError, LayoutError) as error:
        return str(error)
    return None
