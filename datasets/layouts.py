"""Finds the pairs (blurred, sharp) of a data set, whichever of the usual folder layouts it has.

    GoPro      {train,test}/<scene>/{blur,sharp}/*        as downloaded; blur_gamma is ignored
    by kind    {train,test}/{blur,sharp}/**
    A/B        {train,test}/{trainA,trainB | testA,testB}/**
    HIDE       test/{test-close-ups,test-long-shot}/* with GT/* beside or inside test, flat or in the same two folders
    RealBlur   RealBlur_{J,R}_{train,test}_list.txt, each line: sharp path, blurred path, relative to the list's folder;
               without a list: <scene>/{blur/blur_N,gt/gt_N}
    blurred    a folder of images without sharp ones, such as RWBI
    any other  two folders, blurred and sharp

Images are paired by name, never by sort order: by relative path without suffix and without the prefixes blur_ and gt_.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .files import walk
from .images import IMAGE_SUFFIXES

SPLITS = ("train", "test")
AB_FOLDERS = {"trainA": "trainB", "testA": "testB"}
HIDE_FOLDERS = ("test-close-ups", "test-long-shot")
LIST_NAME = re.compile(r"RealBlur_([JR])_(train|test)_list\.txt")
VARIANT_NAME = re.compile(r"RealBlur[-_]?([JR])(?![A-Za-z])")
# Names of folders of sharp images in unknown layouts: these images must not be taken for blurred ones.
SHARP_NAMES = frozenset(
    "sharp gt groundtruth ground_truth target targets target_crops clean hr trainb testb label labels reference latent "
    "original".split()
)
KNOWN_LAYOUTS = (__doc__ or "\n\n").split("\n\n")[1]  # python -OO removes docstrings


class LayoutError(ValueError):
    """A folder of unknown layout, or whose blurred and sharp images do not match. The message contains the path."""


class AmbiguityError(LayoutError):
    """A folder with several splits or variants (``what``), of which one must be chosen among ``choices``."""

    def __init__(self, root: Path, what: str, choices: list[str]) -> None:
        super().__init__(f"{root}: contains {' and '.join(choices)}; choose a {what}")
        self.what, self.choices = what, choices


@dataclass(frozen=True)
class Pair:
    """A blurred image and its sharp one."""

    name: str  # relative path without suffix and without the folder "blur": unique, and the path of its results
    blurred: Path
    sharp: Path | None  # None if there is none


def find_pairs(
    source: str | os.PathLike | Iterable[str | os.PathLike],
    split: str | None = None,
    *,
    variant: str | None = None,
    need_sharp: bool = False,
) -> list[Pair]:
    """Find the pairs of a data set.

    Args:
        source: the root of a data set, the folder of a split, any folder of images, or two folders [blurred, sharp].
        split: "train" or "test"; None if the folder is a split or has only one.
        variant: "J" or "R", if one folder contains both of RealBlur's data sets.
        need_sharp: refuse blurred images without sharp ones.
    Returns:
        The pairs, sorted by name.
    Raises:
        LayoutError: unknown layout, no images, images without a partner, or a test split to train on.
        AmbiguityError: split or variant must be given.
    """
    if split not in (None, *SPLITS) or variant not in (None, "J", "R"):
        raise ValueError(f"split is 'train', 'test' or None, variant 'J', 'R' or None, not {split!r} and {variant!r}")
    if not isinstance(source, (str, os.PathLike)):
        return _two_folders(source)
    root = existing_folder(source)
    if split == "train" and root.resolve().name == "test" and not any((root / name).is_dir() for name in SPLITS):
        raise LayoutError(f"{root}: a test split, which must not be trained on")
    pairs = _known_layout(root, split, variant)
    children = _subfolders(root)
    if pairs is None and len(children) == 1 and not any(_is_image(entry.name) for entry in os.scandir(root)):
        pairs = _known_layout(children[0], split, variant)  # an archive unpacked into its own folder
    if pairs is None:
        pairs = _blurred_only(root)
    if not pairs:
        raise LayoutError(
            f"{root}: no images in a known layout\nknown layouts:\n{KNOWN_LAYOUTS}\nfound:\n{_contents(root)}"
        )
    alone = [pair.blurred for pair in pairs if pair.sharp is None]
    if need_sharp and alone:
        raise LayoutError(f"{root}: {len(alone)} blurred images have no sharp image, the first is {alone[0]}")
    return sorted(pairs, key=lambda pair: pair.name)


# Which folder of a data set


def _known_layout(root: Path, split: str | None, variant: str | None) -> list[Pair] | None:
    """The pairs below a root; None if it has none of the known layouts."""
    lists = {
        match.groups(): entry
        for entry in sorted(root.iterdir())
        if (match := LIST_NAME.fullmatch(entry.name)) and entry.is_file()
    }
    if lists:
        variant = _choose(root, "variant", variant, sorted({key[0] for key in lists}))
        split = _choose(root, "split", split, sorted({key[1] for key in lists if key[0] == variant}))
        return _listed(lists[variant, split])
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if splits:
        root = root / _choose(root, "split", split, splits)
    else:
        variants = {m[1]: child for child in _subfolders(root) if (m := VARIANT_NAME.match(child.name))}
        if variants:
            return _known_layout(variants[_choose(root, "variant", variant, sorted(variants))], split, variant)
    # Without a known layout, a split's blurred images are its own alone.
    return _by_kind(root, split) or _hide(root) or _scenes(root) or (_blurred_only(root) if splits else None)


def _choose(root: Path, what: str, wanted: str | None, choices: list[str]) -> str:
    """The wanted split or variant, or the only one; LayoutError if it does not exist or is ambiguous."""
    if wanted is not None:
        if wanted in choices:
            return wanted
        raise LayoutError(f"{root}: has no {what} {wanted!r}, only {' and '.join(choices)}")
    if len(choices) > 1:
        raise AmbiguityError(root, what, choices)
    return choices[0]


def _two_folders(source: Iterable[str | os.PathLike]) -> list[Pair]:
    folders = [existing_folder(folder) for folder in source]
    if len(folders) != 2:
        raise LayoutError(f"{len(folders)} folders given; expected one, or two as [blurred, sharp]")
    blurred, sharp = folders
    pairs = _match(f"{blurred} and {sharp}", _named(blurred), _named(sharp))
    if not pairs:
        raise LayoutError(f"{blurred} and {sharp}: no images found")
    return pairs


def existing_folder(path: str | os.PathLike) -> Path:
    """The path of a folder; LayoutError if it is none."""
    if not Path(path).is_dir():
        raise LayoutError(f"{path}: no such folder")
    return Path(path)


# The layouts. Each function returns None (or no pairs) if its layout does not apply.


def _by_kind(folder: Path, split: str | None) -> list[Pair] | None:
    """{blur,sharp}, {blur,gt}, {trainA,trainB} or {testA,testB}; blurred images only if the second folder is
    missing."""
    if (folder / "blur").is_dir():
        blurred, sharp = folder / "blur", _sharp_beside_blur(folder)
    else:
        found = {name[:-1]: name for name in AB_FOLDERS if (folder / name).is_dir()}
        if not found:
            return None
        # The folder test may contain trainA: the split matters only if both are there.
        name = found[_choose(folder, "split", split, sorted(found))] if len(found) > 1 else next(iter(found.values()))
        blurred, sharp = folder / name, folder / AB_FOLDERS[name]
    if sharp is None or not sharp.is_dir():
        return _blurred_only(blurred)
    return _match(str(folder), _named(blurred), _named(sharp))


def _sharp_beside_blur(folder: Path) -> Path | None:
    return next((folder / name for name in ("sharp", "gt") if (folder / name).is_dir()), None)


def _hide(folder: Path) -> list[Pair] | None:
    """Blurred images in subfolders (or directly in the folder, as in HIDE's train), sharp ones in GT inside or
    beside."""
    inside = (folder / "GT").is_dir()
    gt = folder / "GT" if inside else folder.parent / "GT"
    if not gt.is_dir() or not (inside or folder.name in SPLITS):
        return None
    blurred = {name: path for name, path in _named(folder).items() if gt not in path.parents}
    nested = any((gt / name).is_dir() for name in HIDE_FOLDERS)
    # A GT folder beside the splits contains the sharp images of both.
    return _match(str(folder), blurred, _named(gt), key=_key if nested else _last_key, spare_sharp=not inside)


def _scenes(folder: Path) -> list[Pair] | None:
    """<scene>/{blur,sharp}/* or <scene>/{blur,gt}/*, for all folders with images."""
    scenes = [child for child in _subfolders(folder) if (child / "blur").is_dir() or _sharp_beside_blur(child)]
    others = [child for child in _subfolders(folder) if child not in scenes] if scenes else []
    if other := next(filter(list_images, others), None):
        raise LayoutError(f"{other}: has images, but neither blur/ nor sharp/ or gt/ as the scenes beside it")
    blurred, sharp = {}, {}
    for scene in scenes:
        if (scene / "blur").is_dir():
            blurred |= _named(scene / "blur", f"{scene.name}/")
        if beside := _sharp_beside_blur(scene):
            sharp |= _named(beside, f"{scene.name}/")
    if not blurred:
        return None
    if not sharp:
        return [Pair(name, path, None) for name, path in blurred.items()]
    return _match(str(folder), blurred, sharp)


def _listed(file: Path) -> list[Pair]:
    """One of RealBlur's list files. Names are <scene>/<blurred image>, without a folder shared by all images."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise LayoutError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise LayoutError(f"{file}: expected a sharp and a blurred path on each line, got {' '.join(wrong)!r}")
    paths = [Path(blurred).with_suffix("") for _, blurred in rows]
    # Names lead into the folder of results: neither up nor to the root.
    parts = [[part for part in path.parts if part not in ("blur", "..", path.anchor)] for path in paths]
    while parts and min(map(len, parts)) > 2 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    pairs = [
        Pair("/".join(part), file.parent / blurred, file.parent / sharp)
        for part, (sharp, blurred) in zip(parts, rows, strict=True)
    ]
    missing = [str(path) for pair in pairs for path in (pair.blurred, pair.sharp) if path and not path.is_file()]
    if missing:
        raise LayoutError(f"{file}: {len(missing)} of the listed images are missing: {_first(missing)}")
    if len({pair.name for pair in pairs}) < len(pairs):
        raise LayoutError(f"{file}: lists an image twice")
    return pairs


def _blurred_only(folder: Path) -> list[Pair] | None:
    """Every image below the folder; None if one of its folders seems to contain sharp images."""
    paths = list_images(folder)
    if any(part.lower() in SHARP_NAMES for path in paths for part in Path(path).parts[:-1]):
        return None
    return [Pair(name, folder / path, None) for name, path in zip(image_names(paths), paths, strict=True)]


# Files and names


def _key(name: str) -> str:
    folder, slash, stem = name.rpartition("/")
    return folder + slash + stem.removeprefix("blur_").removeprefix("gt_")


def _last_key(name: str) -> str:
    return _key(name.rpartition("/")[2])


def _match(
    where: str,
    blurred: dict[str, Path],
    sharp: dict[str, Path],
    *,
    key: Callable[[str], str] = _key,
    spare_sharp: bool = False,
) -> list[Pair]:
    """Pair two sets of named images by key. With spare_sharp, sharp images without a blurred one are allowed."""
    blurred_of, sharp_of = _by_key(where, blurred, key), _by_key(where, sharp, key)
    alone = [str(blurred[name]) for k, name in blurred_of.items() if k not in sharp_of]
    spare = [] if spare_sharp else [str(sharp[name]) for k, name in sharp_of.items() if k not in blurred_of]
    complaints = []
    if alone:
        complaints.append(f"{len(alone)} of {len(blurred)} blurred images have no sharp partner: {_first(alone)}")
    if spare:
        complaints.append(f"{len(spare)} of {len(sharp)} sharp images have no blurred partner: {_first(spare)}")
    if complaints:
        raise LayoutError(f"{where}: {'; '.join(complaints)}")
    return [Pair(name, blurred[name], sharp[sharp_of[k]]) for k, name in blurred_of.items()]


def _by_key(where: str, named: dict[str, Path], key: Callable[[str], str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, path in named.items():
        other = names.setdefault(key(name), name)
        if other != name:
            raise LayoutError(f"{where}: {named[other]} and {path} have the same name, so pairing is ambiguous")
    return names


def _named(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The images below a folder by name, which is prefix + relative path without suffix."""
    named: dict[str, Path] = {}
    for path in list_images(folder):
        name = prefix + os.path.splitext(path)[0]
        if name in named:
            raise LayoutError(f"{folder}: {named[name].name} and {Path(path).name} have the same name")
        named[name] = folder / path
    return named


def list_images(folder: Path) -> list[str]:
    """Relative paths of all images below a folder, sorted, with forward slashes. Hidden files are skipped.

    Raises:
        LayoutError: a name that is not UTF-8, which records could not hold.
        OSError: a folder cannot be read.
    """
    relative = [path.relative_to(folder) for path in walk(folder)]
    paths = sorted(path.as_posix() for path in relative if _is_image(path.name) and all(map(_is_visible, path.parts)))
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise LayoutError(f"{folder}: the file name {os.fsencode(path)!r} is not UTF-8; rename it") from error
    return paths


def image_names(paths: list[str]) -> list[str]:
    """Unique names of images: their relative paths, without suffix where that stays unique."""
    names = [os.path.splitext(path)[0] for path in paths]
    # photo.jpg and photo.png both keep their suffix, so that neither result overwrites the other. Then photo.jpg.png
    # must keep its own, too.
    while len(set(names)) < len(names):
        times = Counter(names)
        names = [path if times[name] > 1 else name for path, name in zip(paths, names, strict=True)]
    return names


def _is_visible(name: str) -> bool:
    """Archives made on a Mac contain .DS_Store, ._name.png and __MACOSX."""
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return _is_visible(name) and name.lower().endswith(IMAGE_SUFFIXES)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if _is_visible(entry.name) and entry.is_dir())


def _first(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", …" if len(items) > count else "")


def _contents(folder: Path, branches: int = 4, depth: int = 3) -> str:
    """A listing of a folder, its first subfolders, and the first branch below each."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    lines = [f"  {folder}: {_first(entries, 6) or 'nothing'}"]
    if depth > 0:
        lines += [_contents(child, 1, depth - 1) for child in _subfolders(folder)[:branches]]
    return "\n".join(lines)
