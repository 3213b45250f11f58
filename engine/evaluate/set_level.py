"""FID and KID of all restored images together: raw, divided by the blurred inputs' score, and with both bounds.

The features of each set of images are kept beside the scores, so that a stopped run does not compute them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.files import atomic
from datasets.images import read_rgb
from metrics.catalogue import METRICS, SET
from metrics.fid import inception_features, patches

from .pairing import Sample
from .store import stamp

logger = logging.getLogger(__name__)

KINDS = ("restored", "sharp", "blurred")
NO_BLURRED = "the blurred inputs are unknown; give --gt the whole data set, not only its sharp images"


class SetScores:
    """The scores of sets that are wanted.

    Args:
        samples: the images; all three sets are made of the same ones.
        scorers: metric -> what computes it, among others the functions of two sets of features.
        how: metric -> what decides its value, of those that can be measured.
        profile: "whang" takes features of patches, not of full images.
        folder: where the features are kept.
    """

    def __init__(
        self,
        samples: list[Sample],
        scorers: dict[str, Callable],
        how: dict[str, dict],
        profile: str,
        device: torch.device,
        folder: Path,
    ):
        self._scorers = {name: scorers[name] for name in how if METRICS[name].kind == SET}
        # The same for all of them but for the definition.
        self._features_by = [how[name] | {"definition": None} for name in self._scorers][:1]
        self._of_patches, self._device, self._folder = profile == "whang", device, folder
        paths = {kind: [getattr(sample, kind) for sample in samples] for kind in KINDS}
        self._paths = {kind: paths[kind] for kind in KINDS if self._scorers and all(paths[kind])}

    @property
    def steps(self) -> int:
        """How often `score` moves the progress bar."""
        return sum(map(len, self._paths.values()))

    def score(self, bar: tqdm) -> dict[str, dict]:
        """The score of each metric: its value with both bounds, or why it is not measured."""
        if not self._scorers:
            return {}
        if len(self._paths["sharp"]) < 2:
            return {name: {"not_measured": "needs at least two images"} for name in self._scorers}
        try:
            features = {kind: self._features(kind, bar) for kind in self._paths}
        except ValueError as error:  # an image of a size that is not cut into patches
            return {name: {"not_measured": str(error)} for name in self._scorers}
        values: dict[Callable, dict[str, float]] = {}  # metrics that differ by a factor share their values
        for function in self._scorers.values():
            if function not in values:
                values[function] = {kind: float(function(features[kind], features["sharp"])) for kind in features}
        return {name: self._score(name, values[function]) for name, function in self._scorers.items()}

    def _score(self, name: str, values: dict[str, float]) -> dict[str, object]:
        scale, blurred = METRICS[name].scale, values.get("blurred")
        score = {
            "value": scale * values["restored"],
            "images": len(self._paths["sharp"]),
            "bounds": {
                "sharp_against_sharp": scale * values["sharp"],
                "blurred_against_sharp": None if blurred is None else scale * blurred,
            },
        }
        if not METRICS[name].over_blurred:
            return score
        if blurred is None:
            return {"not_measured": NO_BLURRED}
        if not blurred:
            return {"not_measured": "the blurred inputs' own score is 0: they are the sharp images"}
        return score | {"value": values["restored"] / blurred}

    def _features(self, kind: str, bar: tqdm) -> np.ndarray:
        """(N, 2048), from the file of an earlier run where it is of the same images."""
        paths = self._paths[kind]
        made_of = [self._features_by, self._of_patches, [str(path) for path in paths], stamp(*paths)]
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        file = self._folder / f"features_{kind}.npz"
        if (kept := read_features(file, key)) is not None:
            bar.update(len(paths))
            return kept
        cut = patches if self._of_patches else None
        features = inception_features(paths, self._device, cut=cut, read=read_rgb, progress=bar.update)
        with atomic(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, features=features, key=key)
        return features


def read_features(file: Path, key: str) -> np.ndarray | None:
    """The features that an earlier run has kept under this key; None where there are none, or damaged ones."""
    if not file.is_file():
        return None
    try:
        with np.load(file) as kept:
            return kept["features"] if str(kept["key"]) == key else None
    except Exception as error:  # a damaged file makes the reader raise anything
        logger.warning("%s: damaged (%s); its features are computed again", file, error)
        return None
