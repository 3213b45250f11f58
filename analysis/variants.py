"""Variants of the network by name, and the paper's tables of ablations (Tables 5 to 8).

``--variants mine,klff`` names them. Each name is the first of these that it fits:

    ss2d               a recipe in configs/ablation/
    mine               a value of model.fusion, model.vssm, model.scan or model.slices; every module registered with
                       ``@fusion("mine")`` or ``@state_space("mine")`` is one
    xyscannet_t        any other job in configs/, of which stage 1 is used
    optim.lr=1e-4      any key of the configuration

Values and keys change the recipe configs/ablation/xyscan.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.config import CONFIGS, Config, config_path, find_recipes, load_config

FOLDER = "ablation"  # of the recipes, in configs/
BASE = f"{FOLDER}/xyscan"


class VariantError(ValueError):
    """A name that is not a variant. The message lists the names that are."""


@dataclass(frozen=True)
class Variant:
    """A recipe, with changes.

    Attributes:
        label: its row or column in a table; two variants that differ in nothing else are equal.
        job: the recipe, configs/JOB.
        overrides: ``section.key=value``, over that recipe.
    """

    label: str = field(compare=False)
    job: str
    overrides: tuple[str, ...] = ()

    def config(self) -> Config:
        return load_config(self.job, 1, self.overrides)

    def run_name(self, suffix: str) -> str:
        """The job name of one of its runs: JOB@SUFFIX, or JOB@fusion=mine-SUFFIX with overrides."""
        changes = [re.sub(r"[^\w.=-]+", "_", override.removeprefix("model.")) for override in self.overrides]
        return f"{self.job}@{'-'.join([*changes, suffix])}"


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables of ablations.

    Attributes:
        paper: its key in metrics/paper_numbers.yaml.
        key: the key of the configuration's model section that its rows differ in.
        rows: the paper's name of a row -> recipe in configs/ablation/. The last row is XYScanNet-S in every table.
    """

    title: str
    paper: str
    key: str
    rows: dict[str, str]


TABLES = {
    5: PaperTable(
        "The vision state space module", "ablation_vssm", "vssm", {"MambaIR": "ss2d", "XYScanNet-S": "xyscan"}
    ),
    6: PaperTable(
        "One direction or both", "ablation_scan", "scan", {"bidirectional": "bidirectional", "unidirectional": "xyscan"}
    ),
    7: PaperTable(
        "Which slices are scanned",
        "ablation_slices",
        "slices",
        {"inter": "inter", "intra": "intra", "intra and inter": "xyscan"},
    ),
    8: PaperTable(
        "Cross-level feature fusion", "ablation_fusion", "fusion", {"none": "no_fusion", "AFF": "aff", "KLFF": "xyscan"}
    ),
}


def paper_rows(numbers: Collection[int]) -> dict[str, dict[str, float | None]]:
    """The paper's figures in these tables: row -> column -> figure.

    A network that has a row in several of them gets one row, under its first name, with the figures of all.
    """
    from metrics.paper import paper_table

    rows, names = {}, {}
    for number in numbers:
        for name, figures in paper_table(TABLES[number].paper).items():
            label = names.setdefault(TABLES[number].rows.get(name, name), name)
            rows.setdefault(label, {}).update(figures)
    return rows


def table_variants(number: int) -> list[Variant]:
    """The variants in the rows of a table of the paper, under the paper's names."""
    return [Variant(name, f"{FOLDER}/{recipe}") for name, recipe in TABLES[number].rows.items()]


def recipe_variants() -> list[Variant]:
    """The recipes in configs/ablation/, under their own names."""
    return [Variant(name, f"{FOLDER}/{name}") for name in _recipes()]


def registered_variants(*keys: str) -> list[Variant]:
    """The modules registered as values of these keys of the model section that no recipe in configs/ablation/ has."""
    values, variants = _values(), []
    names = [*_recipes(), *(name for known in values.values() for name in known)]
    for key in keys:
        for name in values[key]:
            override = f"model.{key}={name}"
            variant = _changed(name if names.count(name) == 1 else override, override)
            if variant.overrides and name not in values["slices"]:
                variants.append(variant)
    return variants


def find_variants(names: Sequence[str]) -> list[Variant]:
    """The variants of ``--variants``, each once.

    Raises:
        VariantError: for an unknown or ambiguous name.
        ConfigError: for a recipe or a value that cannot be.
    """
    return list(dict.fromkeys(map(find_variant, names)))


def find_variant(name: str) -> Variant:
    if name in _recipes():
        return Variant(name, f"{FOLDER}/{name}")
    values = _values()
    keys = [key for key in values if name in values[key]]
    if len(keys) > 1:
        raise VariantError(
            f"--variants: {name} is a value of {' and of '.join(f'model.{key}' for key in keys)}; "
            f"give one of them, such as model.{keys[0]}={name}"
        )
    if keys or "=" in name:
        return _changed(name, f"model.{keys[0]}={name}" if keys else name)
    if name not in find_recipes():
        known = [f"model.{key}: {', '.join(names)}" for key, names in values.items()]
        raise VariantError(
            f"--variants: {name!r} is not a variant. Recipes in {CONFIGS / FOLDER}: {', '.join(_recipes())}; "
            f"{'; '.join(known)}; or a job in {CONFIGS}, or section.key=value"
        )
    config_path(name, 1)  # refuses a job without a recipe for stage 1
    return Variant(name, name)


def add_variants_flag(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--variants",
        type=_names,
        default=[],
        metavar="NAME,NAME,…",
        help=f"{what}: recipes in configs/ablation, values of model.fusion, model.vssm, model.scan and model.slices "
        "(registered modules too), jobs, or section.key=value",
    )


def _names(text: str) -> list[str]:
    """The names in --variants's value. Commas in brackets belong to a name: model.num_blocks=[1,1,1]."""
    return [name for name in re.split(r",(?![^\[]*\]|[^{]*\})", text) if name]


def _changed(label: str, override: str) -> Variant:
    """BASE with an override; where a recipe in configs/ablation/ is the same, that recipe, whose runs are shared."""
    wanted = Variant(label, BASE, (override,))
    config = wanted.config()
    for name in _recipes():
        recipe = Variant(label, f"{FOLDER}/{name}")
        if dataclasses.replace(recipe.config(), job_name=BASE) == config:
            return recipe
    return wanted


def _recipes() -> list[str]:
    return [name.removeprefix(f"{FOLDER}/") for name in find_recipes(FOLDER)]


def _values() -> dict[str, Collection[str]]:
    """What the keys of the model section that name modules and scans may be."""
    from models.registry import FUSIONS, STATE_SPACES  # only here: --help needs no PyTorch
    from models.xyscannet import SCANS, SLICES, XYSCAN

    return {"fusion": FUSIONS, "vssm": (XYSCAN, *STATE_SPACES), "scan": SCANS, "slices": SLICES}
