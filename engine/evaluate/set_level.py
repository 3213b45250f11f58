"""FID and KID of all restored images together: raw, divided by the blurred inputs' score, and with both bounds.

The features of each set of images are kept beside the scores, so that a stopped run does not compute them again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.files import atomic
from metrics.fid import frechet_distance, inception_features, kernel_distance, patches

from .pairing import Sample
from .store import stamp

SEED = 0  # of KID's subsets
KINDS = ("restored", "sharp", "blurred")
CHUNK = 32  # images between two steps of the progress bar
NO_BLURRED = (
    "the blurred inputs are not known, by whose score it is divided; give --gt the data set rather than its "
    "sharp images alone"
)


class SetScores:
    """The scores of sets that are asked for.

    Args:
        samples: the images; all three sets are made of the same ones.
        how: by the exact name of each score that is wanted, see registry.MEASURES, what decides its value.
        folder: where the features are kept.
    """

    def __init__(self, samples: list[Sample], how: dict[str, dict], device: torch.device, folder: Path):
        self._columns, self._device, self._folder = list(how), device, folder
        self._features_how = [{**facts, "definition": None} for facts in how.values()][:1]  # the same for all
        self._patches = any("whang" in name for name in how)
        paths = {kind: [getattr(sample, kind) for sample in samples] for kind in KINDS}
        self._paths = {kind: paths[kind] for kind in KINDS if how and all(paths[kind])}

    @property
    def steps(self) -> int:
        """How often `measure` moves the progress bar."""
        return sum(map(len, self._paths.values()))

    def measure(self, bar: tqdm) -> dict[str, dict]:
        """The score of each column: its value with both bounds, or why it is not measured."""
        if not self._columns:
            return {}
        if len(self._paths["sharp"]) < 2:
            return {name: {"not_measured": "needs at least two images"} for name in self._columns}
        try:
            features = {kind: self._features(kind, bar) for kind in self._paths}
        except ValueError as error:  # an image of a size that is not cut into patches
            return {name: {"not_measured": str(error)} for name in self._columns}
        scores: dict[str, dict] = {}
        for name in self._columns:
            if not name.endswith("_over_blurred"):
                scores |= self._score(name, features)
        return {name: scores[name] for name in self._columns}

    def _score(self, name: str, features: dict[str, np.ndarray]) -> dict[str, dict]:
        """A raw score and the one divided by the blurred inputs'."""
        values = {kind: distance(name, features[kind], features["sharp"]) for kind in features}
        bounds = {"sharp_against_sharp": values["sharp"], "blurred_against_sharp": values.get("blurred")}
        raw = {"value": values["restored"], "images": len(self._paths["sharp"]), "seed": SEED, "bounds": bounds}
        over = {"not_measured": NO_BLURRED}
        if values.get("blurred"):
            over = raw | {"value": values["restored"] / values["blurred"]}
        return {name: raw, f"{name.removesuffix('_x1000')}_over_blurred": over}

    def _features(self, kind: str, bar: tqdm) -> np.ndarray:
        """(N, 2048), from the file of an earlier run where it is of the same images."""
        paths = self._paths[kind]
        made_of = [self._features_how, self._patches, [str(path) for path in paths], stamp(*paths)]
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        file = self._folder / f"features_{kind}.npz"
        if (kept := read_features(file, key)) is not None:
            bar.update(len(paths))
            return kept
        parts = []
        for first in range(0, len(paths), CHUNK):
            parts.append(image_features(paths[first : first + CHUNK], self._device, self._patches))
            bar.update(len(paths[first : first + CHUNK]))
        features = np.concatenate(parts)
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, features=features, key=key)
        return features


def image_features(paths: list[Path], device: torch.device, of_patches: bool) -> np.ndarray:
    """(N, 2048); of patches (15 N, 2048)."""
    return inception_features(paths, device, cut=patches if of_patches else None)


def distance(name: str, features: np.ndarray, sharp: np.ndarray) -> float:
    """FID or KID, by the score's name, of features (N, 2048) from those of the sharp images."""
    if name.startswith("fid"):
        return float(frechet_distance(features, sharp))
    return float(kernel_distance(features, sharp, seed=SEED)) * (1000 if name.endswith("_x1000") else 1)


def read_features(file: Path, key: str) -> np.ndarray | None:
    try:
        with np.load(file) as kept:
            return kept["features"] if str(kept["key"]) == key else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
