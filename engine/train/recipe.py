"""Whether a run may resume from a training state: their recipes, compared key by key."""

import hashlib
from collections.abc import Sequence

from datasets.layouts import Pair

from ..schema import Config, DataConfig, TrainConfig

# What may change when a run is resumed: speed, length, learning rate, intervals and folders. Every other key changes
# the network, the images that come next, or the meaning of the loss and the optimiser's state.
MAY_CHANGE = {
    "model.scan_backend",
    "data.train",  # the names of the pairs are compared instead
    "data.val",
    "data.workers",
    "data.cache",
    "data.cache_dir",
    "optim.lr",
    "optim.min_lr",
    "optim.cosine_length",
    "optim.cosine_start",
    "train.epochs",
    "train.iterations",
    "train.accumulate",
    "train.checkpoint_activations",
    "train.validate_every",
    "train.save_every",
    "train.snapshot_every",
}
COUNT, NAMES = "number of training pairs", "names of the training pairs (checksum)"

Recipe = dict[str, object]  # section.key -> value, as numbers, texts, lists and dictionaries, which load safely


def recipe_of(config: Config, train_pairs: Sequence[Pair]) -> Recipe:
    """All that a run depends on; of the training images their names and order, so that the folder may be moved.

    Which weights it began with is in its state, as their checksum.
    """
    names = "\n".join(pair.name for pair in train_pairs).encode()
    found = {**_values(config), COUNT: len(train_pairs), NAMES: hashlib.sha256(names).hexdigest()[:16]}
    del found["train.start_from"]
    return found


def recipe_in(state: dict) -> Recipe:
    """The recipe that a training state was made with, with the defaults of keys that were added since."""
    return {**_values(Config("", 0, DataConfig(train=""), TrainConfig())), **state["recipe"]}


def differences(before: Recipe, now: Recipe) -> tuple[list[str], list[str]]:
    """(what forbids resuming, what may change), each as ``key before, now``; keys of one side only are skipped."""
    forbidden, allowed = [], []
    for key, value in now.items():
        if key in before and before[key] != value:
            (allowed if key in MAY_CHANGE else forbidden).append((key, before[key], value))
    return (
        [f"{key} {old}, this run has {new}" for key, old, new in forbidden],
        [f"{key} {old} -> {new}" for key, old, new in allowed],
    )


def _values(config: Config) -> Recipe:
    return {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section in ("model", "data", "loss", "optim", "train")
        for name, value in vars(getattr(config, section)).items()
    }
