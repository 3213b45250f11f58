"""What a recipe can hold: its sections and keys, with their types, defaults and bounds."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from .typed_yaml import ImpossibleValue, require

LARGEST_RATE = 10.0  # larger learning rates are typing mistakes
LARGEST_WEIGHT = 1e6  # of a loss term: beyond, float32 gradients overflow


@dataclass(frozen=True)
class ModelConfig:
    """The network and its variants, see ``models.XYScanNet``."""

    dim: int = 48  # channels at level 1: 48 S, 72 mid, 144 P
    num_blocks: tuple[int, int, int] = (3, 3, 6)  # blocks at levels 1, 2, 3
    kl_gate: Literal["elementwise", "image", "batch"] = "image"
    scan_backend: str = "auto"  # auto | a name in models.ops.selective_scan.BACKENDS
    vssm: str = "xyscan"  # xyscan | ss2d (Table 5) | a name in models.registry.STATE_SPACES
    scan: Literal["unidirectional", "bidirectional"] = "unidirectional"  # Table 6
    slices: Literal["intra_inter", "intra", "inter"] = "intra_inter"  # Table 7
    fusion: str = "klff"  # klff | aff | none (Table 8) | a name in models.registry.FUSIONS
    unshuffle: int = 1  # pixels in height and width to one position inside: 1 or 2

    def check(self) -> None:
        # Lists of names are imported only here: a command's --help needs no PyTorch.
        from models.ops.selective_scan import BACKENDS
        from models.registry import FUSIONS
        from models.xyscannet import decoder_modules

        _require_name(self.scan_backend, ("auto", *BACKENDS), "scan_backend")
        _require_name(self.fusion, FUSIONS, "fusion")
        try:
            decoder_modules(self.vssm, self.scan, self.slices)
        except ValueError as error:
            raise ImpossibleValue("vssm", str(error)) from None
        require(self.dim >= 2 and self.dim % 2 == 0, "dim", "must be even, at least 2")
        require(min(self.num_blocks) >= 0 < max(self.num_blocks), "num_blocks", "must be 0 or more, not all 0")
        require(self.unshuffle in (1, 2), "unshuffle", "must be 1 or 2")


@dataclass(frozen=True)
class DataConfig:
    """Pairs of images. A source is a folder in any known layout, or two: [blurred, sharp].

    With a degradation it is one plain folder of sharp images, from which the degraded ones are made during training.
    """

    train: str | tuple[str, str]
    val: str | tuple[str, str] | None = None
    variant: Literal["J", "R"] | None = None  # RealBlur: which of the two, where one folder holds both
    degradation: str | None = None  # noise:25, noise:15-50, jpeg:10-40, sr:4, …
    patch_size: int = 252
    batch_size: int = 16  # images in each step, over all processes
    rotate: float = 1.0  # probability of a uniform rotation by 0, 90, 180, 270 degrees; released code: 0.5
    workers: int = 4  # data loader processes for each training process
    cache: Literal["none", "memmap"] = "none"  # memmap: decode each image once, into one file per split
    cache_dir: str = "datasets/.cache"

    def check(self) -> None:
        require(self.patch_size >= 16, "patch_size", "must be at least 16")
        require(self.batch_size >= 1, "batch_size", "must be at least 1")
        require(self.workers >= 0, "workers", "must not be negative")
        require(0 <= self.rotate <= 1, "rotate", "must be in [0, 1]")
        if self.degradation is not None:
            self._check_degradation(self.degradation)

    def _check_degradation(self, degradation: str) -> None:
        from datasets.degradation import parse_degradation

        try:
            multiple = parse_degradation(degradation).multiple
        except ValueError as error:
            raise ImpossibleValue("degradation", str(error)) from None
        require(
            self.patch_size % multiple == 0, "patch_size", f"must be a multiple of {multiple} for {self.degradation}"
        )
        for key in ("train", "val"):
            require(
                not isinstance(getattr(self, key), tuple),
                key,
                f"must be one folder of sharp images, from which {self.degradation} makes the degraded ones",
            )
        require(self.variant is None, "variant", "is for pairs of RealBlur and must be left out with degradation")


@dataclass(frozen=True)
class LossConfig:
    """The pixel term plus weighted terms, see ``losses.DeblurLoss``. A weight of 0 leaves a term out."""

    pixel: str = "charbonnier"  # has weight 1; mse is not the paper's | a name in losses.TERMS
    edge_weight: float = 0.05
    contrast_weight: float = 0.0005
    weights: dict[str, float] = field(default_factory=dict)  # of further terms in losses.TERMS, by name

    def check(self) -> None:
        from losses import TERMS

        _require_name(self.pixel, TERMS, "pixel")
        others = [name for name in TERMS if name not in ("edge", "contrast")]  # those two have keys of their own
        require(self.weights.keys() <= set(others), "weights", f"must name terms among {', '.join(others)}")
        for key in ("edge_weight", "contrast_weight"):
            require(0 <= getattr(self, key) <= LARGEST_WEIGHT, key, f"must be in [0, {LARGEST_WEIGHT:g}]")
        for weight in self.weights.values():
            require(0 <= weight <= LARGEST_WEIGHT, "weights", f"must be in [0, {LARGEST_WEIGHT:g}]")
        require(self.terms[self.pixel] == 1, "pixel", "must be a term without another weight")

    @property
    def terms(self) -> dict[str, float]:
        """The weight of each term that is used, the pixel term's first."""
        further = {"edge": self.edge_weight, "contrast": self.contrast_weight, **self.weights}
        return {self.pixel: 1.0, **{name: weight for name, weight in further.items() if weight}}


@dataclass(frozen=True)
class OptimConfig:
    """The learning rate follows a cosine from lr to min_lr, by epoch or by iteration as the run's length is given."""

    name: str = "adam"  # a name in engine.train.optimizers.OPTIMIZERS; the paper's is Adam
    lr: float = 2.2e-4
    min_lr: float = 1e-7
    cosine_length: int | None = None  # epochs or iterations from lr to min_lr; the run's own length by default
    cosine_start: int = 0  # where on that cosine this run begins

    def check(self) -> None:
        from .train.optimizers import OPTIMIZERS

        _require_name(self.name, OPTIMIZERS, "name")
        require(
            0 <= self.min_lr <= self.lr and 0 < self.lr <= LARGEST_RATE,
            "lr",
            f"needs 0 <= min_lr <= lr and 0 < lr <= {LARGEST_RATE:g}",
        )
        require(self.cosine_start >= 0, "cosine_start", "must not be negative")
        require(
            self.cosine_length is None or self.cosine_length > self.cosine_start,
            "cosine_length",
            "must be greater than cosine_start",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length, precision, and how often to validate and save."""

    epochs: int | None = None  # either epochs or iterations
    iterations: int | None = None
    start_from: str | None = None  # initial weights; stage 2's are its own stage 1's final_ by default
    accumulate: int = 1  # micro-batches per step; the batch stays batch_size
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"  # bf16: autocast; fp64: to check numerics
    checkpoint_activations: bool = False  # recompute blocks in the backward pass: less memory, more time
    ema_decay: float = 0.0  # of the averaged weights that are scored and released; 0: none
    validate_every: int = 30  # epochs
    save_every: int = 1  # epochs
    snapshot_every: int | None = None  # epochs between snapshots of the weights, epochN_
    seed: int = 666

    def check(self) -> None:
        one = f"must be null beside iterations: {self.iterations} (set either to null)"
        require(self.epochs is None or self.iterations is None, "epochs", one)
        require(self.epochs is not None or self.iterations is not None, "epochs", "must be given, or iterations")
        for name in ("epochs", "iterations", "accumulate", "validate_every", "save_every", "snapshot_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1")
        require(0 <= self.ema_decay < 1, "ema_decay", "must be in [0, 1)")
        require(0 <= self.seed < 2**32, "seed", "must be in [0, 2^32)")


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


def _require_name(name: str, names: Collection[str], key: str) -> None:
    require(name in names, key, f"must be one of {', '.join(names)}")
