"""One recipe, one file: a stage's configuration, typed and checked, from YAML and ``key=value`` overrides.

``--job_name J`` reads configs/J/config_stage{1,2}.yaml and owns results/J/; ``J@NAME``, a further run of the same
recipe, owns results/J@NAME/. Unknown keys, wrong types and impossible values are refused with the file and the key.
The resolved configuration is saved beside the weights.
"""

import argparse
import dataclasses
import difflib
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from datasets.files import write_atomic

CONFIGS = Path("configs")
RESULTS = Path("results")
LONGEST_NAME = 255  # bytes: what file systems allow


class ConfigError(ValueError):
    """A configuration that cannot be used: names the file, the key, and what is wrong."""


@dataclass(frozen=True)
class ModelConfig:
    """The network and its variants, see ``models.XYScanNet``."""

    dim: int = 48  # channels at level 1: 48 S, 72 mid, 144 P
    num_blocks: tuple[int, int, int] = (3, 3, 6)  # blocks at levels 1, 2, 3
    kl_gate: typing.Literal["elementwise", "image", "batch"] = "image"
    scan_backend: typing.Literal["auto", "reference", "torch", "cpu", "triton", "mamba_ssm"] = "auto"
    vssm: str = "xyscan"  # xyscan | ss2d (Table 5) | a name in models.registry.STATE_SPACES
    scan: typing.Literal["unidirectional", "bidirectional"] = "unidirectional"  # Table 6
    slices: typing.Literal["intra_inter", "intra", "inter"] = "intra_inter"  # Table 7
    fusion: str = "klff"  # klff | aff | none (Table 8) | a name in models.registry.FUSIONS
    unshuffle: int = 1  # pixels in height and width to one position inside: 1 or 2

    def check(self) -> None:
        from models.registry import FUSIONS  # only here: a command's --help needs no PyTorch
        from models.xyscannet import decoder_modules

        _require(self.fusion in FUSIONS, "fusion", f"must be one of {', '.join(FUSIONS)}")
        try:
            decoder_modules(self.vssm, self.scan, self.slices)
        except ValueError as error:
            raise _Impossible("vssm", str(error)) from None
        _require(self.dim >= 2 and self.dim % 2 == 0, "dim", "must be even, at least 2")
        _require(min(self.num_blocks) >= 1, "num_blocks", "must be at least 1 at each level")
        _require(self.unshuffle in (1, 2), "unshuffle", "must be 1 or 2")


@dataclass(frozen=True)
class DataConfig:
    """Pairs of images. A source is a folder in any known layout, or two: [blurred, sharp].

    With a degradation it is one plain folder of sharp images, of which the others are made while training.
    """

    train: str | tuple[str, str]
    val: str | tuple[str, str] | None = None
    variant: typing.Literal["J", "R"] | None = None  # RealBlur: which of the two, where one folder holds both
    degradation: str | None = None  # noise:25, noise:15-50, jpeg:10-40, sr:4, …
    patch_size: int = 252
    batch_size: int = 16  # images a step, over all processes together
    workers: int = 4  # reading processes, for each training process
    cache: typing.Literal["none", "memmap"] = "none"  # memmap: decode each image once, into one file a split
    cache_dir: str = "datasets/.cache"

    def check(self) -> None:
        _require(self.patch_size >= 16, "patch_size", "must be at least 16")
        _require(self.batch_size >= 1, "batch_size", "must be at least 1")
        _require(self.workers >= 0, "workers", "must not be negative")
        if self.degradation is not None:
            self._check_degradation()

    def _check_degradation(self) -> None:
        from datasets.degradation import parse_degradation

        try:
            multiple = parse_degradation(self.degradation).multiple
        except ValueError as error:
            raise _Impossible("degradation", str(error)) from None
        _require(
            self.patch_size % multiple == 0, "patch_size", f"must be a multiple of {multiple} for {self.degradation}"
        )
        for key in ("train", "val"):
            _require(
                not isinstance(getattr(self, key), tuple),
                key,
                f"must be one folder of sharp images, of which {self.degradation} makes the others",
            )
        _require(self.variant is None, "variant", "is for pairs of RealBlur and must be left out with degradation")


@dataclass(frozen=True)
class LossConfig:
    """pixel + edge_weight * edge + contrast_weight * contrast, see ``losses.DeblurLoss``."""

    pixel: typing.Literal["charbonnier", "mse"] = "charbonnier"  # mse is not the paper's
    edge_weight: float = 0.05
    contrast_weight: float = 0.0005

    def check(self) -> None:
        _require(self.edge_weight >= 0, "edge_weight", "must not be negative")
        _require(self.contrast_weight >= 0, "contrast_weight", "must not be negative")


@dataclass(frozen=True)
class OptimConfig:
    """The learning rate is on a cosine from lr to min_lr, by epoch or by iteration as the run's length is given."""

    name: typing.Literal["adam", "muon"] = "adam"  # muon: see engine.train.muon; the paper trains with Adam
    lr: float = 2.2e-4
    min_lr: float = 1e-7
    cosine_length: int | None = None  # epochs or iterations from lr to min_lr; the run's own length by default
    cosine_start: int = 0  # where on that cosine this run begins

    def check(self) -> None:
        _require(
            0 <= self.min_lr <= self.lr and 0 < self.lr < math.inf,
            "lr",
            "needs 0 <= min_lr <= lr and 0 < lr < infinity",
        )
        _require(self.cosine_start >= 0, "cosine_start", "must not be negative")
        _require(
            self.cosine_length is None or self.cosine_length > self.cosine_start,
            "cosine_length",
            "must be beyond cosine_start",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long, how precisely, how often."""

    epochs: int | None = None  # either epochs or iterations
    iterations: int | None = None
    start_from: str | None = None  # weights stage 2 begins with; its own stage 1's final_ by default
    accumulate: int = 1  # micro-steps a step; the batch stays what batch_size says
    precision: typing.Literal["fp32", "bf16", "fp64"] = "fp32"  # bf16: autocast; fp64: to check numerics
    checkpoint_activations: bool = False  # compute blocks again for the backward pass: less memory, more time
    ema_decay: float = 0.0  # of the averaged weights that are scored and released; 0: none
    validate_every: int = 30  # epochs
    save_every: int = 1  # epochs
    seed: int = 666

    def check(self) -> None:
        _require((self.epochs is None) != (self.iterations is None), "epochs", "give either epochs or iterations")
        for name in ("epochs", "iterations", "accumulate", "validate_every", "save_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "must be at least 1")
        _require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1)")
        _require(0 <= self.seed < 2**32, "seed", "must be in [0, 2^32)")


@dataclass(frozen=True)
class Config:
    """One stage of one job."""

    job_name: str
    stage: int
    data: DataConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def weights_to_start_from(self) -> Path:
        """Where stage 2 goes on from: its own stage 1's final weights, unless the recipe names others."""
        if self.train.start_from is not None:
            return Path(self.train.start_from)
        return models_dir(self.job_name) / "final_XYScanNet_stage1.pth"


def results_dir(job_name: str) -> Path:
    return RESULTS / job_name


def models_dir(job_name: str) -> Path:
    return results_dir(job_name) / "models"


def shipped_weights(job_name: str) -> Path:
    """Where a job's trained weights lie that come with the repository, if any do."""
    return CONFIGS / job_name / "weights.pth"


def config_path(job_name: str, stage: int) -> Path:
    """configs/J/config_stageN.yaml, also of J@NAME; ConfigError naming what there is where it is missing."""
    longest = max((len(os.fsencode(part)) for part in Path(job_name).parts), default=0)
    if longest > LONGEST_NAME:
        raise ConfigError(f"--job_name: a name of {longest} bytes is too long for a folder: {LONGEST_NAME} at most")
    if not job_name or "\0" in job_name or Path(job_name).is_absolute() or ".." in Path(job_name).parts:
        raise ConfigError(f"--job_name: {job_name!r} is no name of a folder in {CONFIGS}/ and {RESULTS}/")
    path = CONFIGS / job_name.partition("@")[0] / f"config_stage{stage}.yaml"
    if not path.is_file():
        stages = sorted(found.name for found in path.parent.glob("config_stage*.yaml"))
        there = f"{path.parent} has {', '.join(stages)}" if stages else f"the jobs there are: {', '.join(_jobs())}"
        raise ConfigError(f"{path}: no such file; {there}")
    return path


def load_config(job_name: str, stage: int, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration of a job's stage, its ``section.key=value`` overrides applied."""
    path = config_path(job_name, stage)
    return _build({"job_name": job_name, "stage": stage, **_read_yaml(path)}, str(path), overrides)


def model_options(weights: Path, job_name: str) -> dict:
    """What weights do not tell of their network: from the record or recipe beside them, else from the job's own."""
    name = f"config_stage{1 if weights.stem.endswith('stage1') else 2}.yaml"
    for folder in (weights.parent.parent, weights.parent, results_dir(job_name), CONFIGS / job_name):
        path = folder / name
        if path.is_file():
            model = _section(ModelConfig, _read_yaml(path).get("model", {}), str(path), "model")
            return {name: getattr(model, name) for name in ("kl_gate", "scan_backend", "scan", "slices")}
    return {}


def save_config(config: Config, path: Path, **facts: object) -> None:
    """Write the resolved configuration as YAML, ``facts`` (versions, git hash) as comments above it."""
    header = "".join(f"# {name}: {value}\n" for name, value in facts.items())
    write_atomic(path, header + to_yaml(config))


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(_plain(config), sort_keys=False)


def parse_stage_config(
    stage: int, description: str, argv: typing.Sequence[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """The command line of a training script: (resolved configuration, --device and --dry_run)."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections and keys: engine/config.py, or --dry_run to see them resolved",
    )
    parser.add_argument(
        "--job_name", required=True, help=f"reads configs/JOB_NAME/config_stage{stage}.yaml, writes results/JOB_NAME/"
    )
    parser.add_argument("--device", default=None, help="cuda, cuda:1, cpu; default: a GPU where there is one")
    parser.add_argument("--dry_run", action="store_true", help="print configuration, data and size of the run")
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


def _jobs() -> list[str]:
    return sorted({path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("config_stage*.yaml")})


def _read_yaml(path: Path) -> dict:
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold sections (model, data, …), not {type(content).__name__}")
    content.pop("job_name", None), content.pop("stage", None)  # a saved record names them; the caller knows them
    return content


def _parse_yaml(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {reason}") from error


def _build(content: dict, source: str, overrides: typing.Sequence[str]) -> Config:
    origins = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        section, dot, key = dotted.partition(".")
        if not equals or not dot:
            raise ConfigError(f"command line: {override!r} is not of the form section.key=value")
        if section not in _sections():
            raise ConfigError(f"command line: {dotted}: no section {section!r}{_suggest(section, _sections())}")
        if not isinstance(content.setdefault(section, {}), dict):
            raise ConfigError(f"{source}: {section}: must be a section of keys, not {content[section]!r}")
        content[section][key] = _parse_yaml(text, f"command line: {dotted}")
        origins[dotted] = "command line"
    return _section(Config, content, source, "", origins)


def _section(cls, content: object, source: str, prefix: str, origins: dict[str, str] | None = None):
    """An instance of the dataclass ``cls`` from a mapping; ``origins`` says which keys came from elsewhere."""
    origins = origins or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: {prefix or 'top level'}: must be a section of keys, not {content!r}")
    types, values = typing.get_type_hints(cls), {}
    for key, value in content.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        where = f"{origins.get(name, source)}: {name}"
        if key not in types:
            raise ConfigError(f"{where}: unknown key{_suggest(str(key), types)}")
        if dataclasses.is_dataclass(types[key]):
            values[key] = _section(types[key], value, source, name, origins)
        else:
            values[key] = _convert(value, types[key], where)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{source}: {f'{prefix}.' if prefix else ''}{missing[0]}: must be given")
    section = cls(**values)
    if hasattr(section, "check"):
        try:
            section.check()
        except _Impossible as error:
            name = f"{prefix}.{error.key}"
            raise ConfigError(
                f"{origins.get(name, source)}: {name}: {error.why}, not {getattr(section, error.key)!r}"
            ) from None
    return section


def _convert(value: object, wanted: object, where: str) -> object:
    """``value`` as the annotated type ``wanted``, strictly; only, PyYAML reads 1e-4 as text, which is a number here."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: must be one of {', '.join(map(str, arguments))}, not {value!r}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(arguments):
            return tuple(_convert(item, kind, where) for item, kind in zip(value, arguments, strict=True))
        raise ConfigError(f"{where}: must be a list of {len(arguments)}, not {value!r}")
    if arguments:  # a union
        for kind in arguments:
            try:
                return _convert(value, kind, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where}: must be {_describe(wanted)}, not {value!r}")
    if wanted is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, wanted) and not (isinstance(value, bool) and wanted is int):
        return value
    raise ConfigError(f"{where}: must be {_describe(wanted)}, not {value!r}")


def _describe(kind: object) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(kind) is tuple:
        return f"a list of {len(arguments)}"
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}[kind]


def _fields(cls) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _sections() -> list[str]:
    return [name for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)]


def _suggest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


class _Impossible(Exception):
    def __init__(self, key: str, why: str):
        self.key, self.why = key, why


def _require(condition: bool, key: str, why: str) -> None:
    if not condition:
        raise _Impossible(key, why)
