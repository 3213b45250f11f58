"""One recipe, one file: a stage's configuration, from YAML and ``key=value`` overrides; the folders of a job.

``--job_name J`` reads configs/J/config_stage{1,2}.yaml and owns results/J/; ``J@NAME``, a further run of the same
recipe, owns results/J@NAME/. Folders are relative to the current one; recipes and weights that are not in it are the
repository's own. Sections and keys: engine/schema.py. The resolved configuration is saved beside the
weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path

import yaml

from datasets.files import write_atomic

from .schema import Config, ModelConfig
from .typed_yaml import ConfigError, build, parse_yaml, read_yaml, suggest

CONFIGS = Path("configs")
RESULTS = Path("results")
PRETRAINED = Path("models") / "pretrained"
REPOSITORY = Path(__file__).parents[1]
LONGEST_NAME = 200  # bytes; file systems take 255, and temporary files have longer names


def check_job_name(job_name: str) -> str:
    """The name itself.

    Raises:
        ConfigError: it cannot be a folder below configs/ and results/.
    """
    if len(job_name.encode(errors="replace")) > LONGEST_NAME:
        raise ConfigError(f"job name {job_name[:40]!r}…: longer than {LONGEST_NAME} bytes")
    if not job_name.isprintable() or any(part in ("", ".", "..") for part in job_name.split("/")):
        raise ConfigError(f"job name {job_name!r}: not the name of a folder in {CONFIGS}/ and {RESULTS}/")
    return job_name


def results_dir(job_name: str) -> Path:
    """results/JOB; ConfigError for a name that cannot be a job's."""
    return RESULTS / check_job_name(job_name)


def models_dir(job_name: str) -> Path:
    return results_dir(job_name) / "models"


def shipped_weights(job_name: str) -> Path:
    """The file for trained weights that come with the repository; few jobs have one."""
    return _here_or_shipped(PRETRAINED / f"{check_job_name(job_name)}.pth")


def start_weights(config: Config) -> Path | None:
    """The weights that a run begins with: train.start_from, else stage 1's final ones in stage 2; None for random."""
    if config.train.start_from is not None:
        return Path(config.train.start_from)
    return _own_stage1(config.job_name) if config.stage == 2 else None


def _own_stage1(job_name: str) -> Path:
    return models_dir(job_name) / "final_XYScanNet_stage1.pth"


def config_dir(job_name: str) -> Path:
    """configs/J, also of J@NAME; ConfigError for a name that cannot be a job's."""
    return _here_or_shipped(CONFIGS / check_job_name(job_name).partition("@")[0])


def find_recipes(folder: str = "") -> list[str]:
    """The names of the jobs with recipes below configs/FOLDER: those of this folder, then the repository's."""
    names: dict[str, None] = {}
    for configs in (CONFIGS, REPOSITORY / CONFIGS):
        found = {path.parent for path in (configs / folder).rglob("config_stage*.yaml")}
        names |= dict.fromkeys(sorted(path.relative_to(configs).as_posix() for path in found))
    return list(names)


def _here_or_shipped(path: Path) -> Path:
    shipped = REPOSITORY / path
    return shipped if shipped.exists() and not path.exists() else path


def config_path(job_name: str, stage: int) -> Path:
    """configs/J/config_stageN.yaml, also of J@NAME; ConfigError naming the existing ones where it is missing."""
    path = config_dir(job_name) / f"config_stage{stage}.yaml"
    if not path.is_file():
        stages = sorted(found.name for found in path.parent.glob("config_stage*.yaml"))
        there = f"{path.parent} has {', '.join(stages)}" if stages else f"available jobs: {', '.join(find_recipes())}"
        raise ConfigError(f"{path}: no such file; {there}")
    return path


def load_config(job_name: str, stage: int, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a job's stage, with ``section.key=value`` overrides.

    Raises:
        ConfigError: in one line, with the file or "command line" and the key.
    """
    path = config_path(job_name, stage)
    content = {**read_yaml(path), "job_name": job_name, "stage": stage}  # a saved record names them, too
    origins = _override(content, overrides, str(path))
    config = build(Config, content, str(path), origins=origins)
    named, own = config.train.start_from, _own_stage1(job_name)
    if named and "train.start_from" not in origins and not Path(named).exists() and own.is_file():
        # The recipe names another job's weights, which are missing; the released code expects them in the job's own.
        return dataclasses.replace(config, train=dataclasses.replace(config.train, start_from=str(own)))
    return config


def model_options(weights: Path, job_name: str) -> dict:
    """Network options that a weights file may not record, from the configuration beside it, else from the job's."""
    name = f"config_stage{1 if weights.stem.endswith('stage1') else 2}.yaml"
    for folder in (weights.parent.parent, weights.parent, results_dir(job_name), config_dir(job_name)):
        path = folder / name
        if path.is_file():
            model = build(ModelConfig, read_yaml(path).get("model", {}), str(path), "model")
            return {option: getattr(model, option) for option in ("kl_gate", "scan_backend", "scan", "slices")}
    return {}


def save_config(config: Config, path: Path, **facts: object) -> None:
    """Write the resolved configuration as YAML, ``facts`` (versions, git hash) as comments above it."""
    header = "".join(f"# {name}: {value}\n" for name, value in facts.items())
    write_atomic(path, header + to_yaml(config))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def parse_stage_config(
    stage: int, description: str, argv: Sequence[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """The command line of a training script: (resolved configuration, --device and --dry_run)."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections, keys and their values: engine/schema.py; --dry_run prints the resolved configuration",
    )
    parser.add_argument(
        "--job_name", required=True, help=f"reads configs/JOB_NAME/config_stage{stage}.yaml, writes results/JOB_NAME/"
    )
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the recipe, check the data, measure a step and estimate time, memory and disk space; train nothing",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="change the recipe for this run, for example data.batch_size=8",
    )
    arguments = parser.parse_intermixed_args(argv)
    try:
        return load_config(arguments.job_name, stage, arguments.overrides), arguments
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _override(content: dict, overrides: Sequence[str], source: str) -> dict[str, str]:
    """Put ``section.key=value`` texts into the content of a recipe; returns which keys came from the command line."""
    sections = [name for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)]
    origins = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        section, dot, key = dotted.partition(".")
        if not equals or not dot:
            raise ConfigError(f"command line: {override!r} is not of the form section.key=value")
        if section not in sections:
            raise ConfigError(f"command line: {dotted}: no section {section!r}{suggest(section, sections)}")
        if not isinstance(content.setdefault(section, {}), dict):
            raise ConfigError(f"{source}: {section}: must be a section of keys, not {content[section]!r}")
        content[section][key] = parse_yaml(text, f"command line: {dotted}")
        origins[dotted] = "command line"
    return origins
