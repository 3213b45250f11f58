"""Whether a training state may be gone on from: its recipe compared with this run's, key by key, by one table."""

import dataclasses
import hashlib
from collections.abc import Sequence

from datasets.layouts import Pair

from ..config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig

# What may change between a stop and its resume: how fast, how long, how often looked at, and from where. Every other
# key changes the network, which images come next, or what the loss and the optimiser's state mean.
MAY_CHANGE = {
    "model.scan_backend",
    "data.train",
    "data.val",
    "data.workers",
    "data.cache",
    "data.cache_dir",  # the names are compared instead
    "optim.lr",
    "optim.min_lr",
    "optim.cosine_length",
    "optim.cosine_start",
    "train.epochs",
    "train.iterations",
    "train.start_from",
    "train.accumulate",
    "train.checkpoint_activations",
    "train.validate_every",
    "train.save_every",
}
SECTIONS = {"model": ModelConfig, "data": DataConfig, "loss": LossConfig, "optim": OptimConfig, "train": TrainConfig}
COUNT, NAMES = "number of training pairs", "names of the training pairs (checksum)"

Recipe = dict[str, object]  # section.key -> value, as numbers, texts and lists, which load safely


def recipe_of(config: Config, train_pairs: Sequence[Pair]) -> Recipe:
    """All that a run depends on. Of the training images their names and order, so that the folder may be moved."""
    names = "\n".join(pair.name for pair in train_pairs).encode(errors="surrogateescape")
    values = {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section in SECTIONS
        for name, value in vars(getattr(config, section)).items()
    }
    return {**values, COUNT: len(train_pairs), NAMES: hashlib.sha256(names).hexdigest()[:16]}


def recipe_in(state: dict) -> Recipe:
    """The recipe that a training state was made with; keys that came later have their defaults.

    The first states knew a few keys alone: then only those are compared.
    """
    if "recipe" not in state:
        return {"optim.name": "adam", **state["identity"]}
    return {**_defaults(), **state["recipe"]}


def differences(before: Recipe, now: Recipe) -> tuple[list[str], list[str]]:
    """(what forbids going on, what may change), each as ``key before, now``; keys of one side alone are passed over."""
    forbidden, allowed = [], []
    for key, value in now.items():
        if key in before and before[key] != value:
            (allowed if key in MAY_CHANGE else forbidden).append((key, before[key], value))
    return (
        [f"{key} {old}, this run has {new}" for key, old, new in forbidden],
        [f"{key} {old} -> {new}" for key, old, new in allowed],
    )


def _defaults() -> Recipe:
    return {
        f"{section}.{field.name}": list(field.default) if isinstance(field.default, tuple) else field.default
        for section, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }
