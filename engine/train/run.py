"""A training run on disk: data, network and optimiser of one stage; resumed, saved, released."""

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel

from datasets.files import atomic, checksum, write_atomic
from models import XYScanNet, load_weights
from models.ops.selective_scan import resolve_backend
from models.weights import described_state

from .. import distributed
from ..config import models_dir, results_dir, save_config, start_weights, to_yaml
from ..memory import keep_freed_memory
from ..provenance import git_hash, network_code, versions
from ..schema import Config
from ..typed_yaml import ConfigError
from . import recipe
from .checkpoint import CheckpointError, load_state, random_state, save_atomic, save_state, set_random_state
from .data import TrainingData
from .nan_check import NonFiniteError, nonfinite_parameter
from .optimizers import OPTIMIZERS, load_optimizer_state
from .schedule import cosine

logger = logging.getLogger(__name__)

MISSING_START = "{}: these initial weights are missing; run stage 1 first, of that job, or set train.start_from=FILE"


class TrainingRun:
    """One stage of one job, from its configuration: what is saved, and what that depends on.

    Raises:
        ConfigError: the batch cannot be shared equally, or the configuration cannot run on this device.
        LayoutError: the data folders hold no pairs.
    """

    def __init__(self, config: Config, device_name: str | None = None):
        self.config, self.device = config, distributed.device(device_name)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        torch.manual_seed(config.train.seed)
        keep_freed_memory(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True

        self.data = TrainingData(config, pin_memory=self.device.type == "cuda")
        share = self.world_size * config.train.accumulate
        if config.data.batch_size % share:
            below = config.data.batch_size // share * share
            fitting = f"{below} or {below + share}" if below else share
            raise ConfigError(
                f"data.batch_size: {config.data.batch_size} images cannot be shared equally by {self.world_size} "
                f"processes x {config.train.accumulate} micro-batches (train.accumulate); use {fitting}"
            )

        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        resolve_backend(config.model.scan_backend, self.device, self.dtype)  # refused now, not at the first step
        self.network = XYScanNet(
            **dataclasses.asdict(config.model), checkpoint_activations=config.train.checkpoint_activations
        ).to(self.device, self.dtype)
        self.optimizer = OPTIMIZERS[config.optim.name](self.network, config.optim.lr)
        self.ema = AveragedModel(self.network) if config.train.ema_decay else None

        self.start: str | None = None  # checksum of the weights that it began with, None for random ones
        self.iteration = 0  # completed steps
        self.best = {"psnr": float("-inf"), "epoch": 0}
        self.validation_due = False  # the present weights have still to be scored
        self.recipe = recipe.recipe_of(config, self.data.train_pairs)
        self.changes: list[str] = []  # of the recipe since the run's first step
        self.new_changes: list[str] = []  # those found when resuming
        self._foreign: list[Path] = []  # weights of another origin, which give way to this run's first state

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.data.epoch(self.iteration)

    @property
    def finished(self) -> bool:
        return self.iteration == self.data.iterations

    @property
    def learning_rate(self) -> float:
        """The next step's, on a cosine by epoch where the run's length is given in epochs, else by iteration."""
        train, optim = self.config.train, self.config.optim
        position = self.epoch if train.epochs else self.iteration
        length = optim.cosine_length or optim.cosine_start + (train.epochs or self.data.iterations)
        return cosine(optim.cosine_start + position, length, optim.lr, optim.min_lr)

    @property
    def released(self) -> XYScanNet:
        """The network whose weights are scored and released: the average where there is one."""
        return self.ema.module if self.ema else self.network

    def due(self, epochs: int) -> bool:
        """Whether the last step completed an epoch whose number is a multiple of ``epochs``."""
        return self.epoch // epochs > self.data.epoch(self.iteration - 1) // epochs

    def path(self, kind: str) -> Path:
        return models_dir(self.config.job_name) / f"{kind}_XYScanNet_stage{self.config.stage}.pth"

    def describe(self) -> str:
        """The resolved configuration, the data found and the size of the run."""
        config, parameters = self.config, sum(p.numel() for p in self.network.parameters())
        share = config.data.batch_size // (self.world_size * config.train.accumulate)
        return (
            f"{to_yaml(config)}\n"
            f"data: {len(self.data.train_pairs)} training pairs, {len(self.data.val_pairs)} validation pairs\n"
            f"network: {parameters:,} parameters, {config.train.precision}, on {self.device}\n"
            f"run: {self.data.iterations:,} iterations of {config.data.batch_size} images "
            f"({self.world_size} processes x {config.train.accumulate} micro-batches x {share}), "
            f"{self.data.iterations * config.data.batch_size / len(self.data.train_pairs):,.1f} epochs"
        )

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights, where the recipe has them, towards the network's.

        AveragedModel's own update makes the host wait for a GPU.
        """
        if self.ema is None:
            return
        average, current = list(self.ema.module.parameters()), list(self.network.parameters())
        if self.ema.n_averaged == 0:
            torch._foreach_copy_(average, current)
        else:
            torch._foreach_lerp_(average, current, 1 - self.config.train.ema_decay)
        self.ema.n_averaged += 1

    def load_weights(self, path: Path | None) -> None:
        """Begin with the weights in ``path`` (released or our own), strictly; None keeps the random ones."""
        if path is None:
            return
        if not path.exists():
            raise CheckpointError(MISSING_START.format(path))
        load_weights(self.network, path)
        self.start = checksum(path)
        if self.ema:
            self.ema.module.load_state_dict(self.network.state_dict())
        logger.info("starting from %s", path)

    def resume(self) -> bool:
        """Continue exactly from the last training state; False where there is none.

        Raises:
            CheckpointError: this run would not be a continuation of that state, or the state cannot be read.
        """
        with distributed.fail_together():
            state = load_state(self.path("last"))
            if state is not None:
                self.restore(state)
        return state is not None

    def restore(self, state: dict) -> None:
        """Take over a training state, see `resume`; on this process alone."""
        path = self.path("last")
        forbidden, allowed = recipe.differences(recipe.recipe_in(state), self.recipe)
        if forbidden:
            raise CheckpointError(
                f"{path} was made with {'; '.join(forbidden)}: resuming would mix two different runs. "
                "Set it back, or use another --job_name"
            )
        if state["iteration"] > self.data.iterations:
            raise CheckpointError(
                f"{path} is at step {state['iteration']}, beyond the {self.data.iterations} of this "
                "run (train.iterations or train.epochs): there is nothing left to do"
            )
        try:
            self.network.load_state_dict(state["model_state"])
            load_optimizer_state(self.optimizer, state["optimizer_state"])
            if self.ema:
                self.ema.load_state_dict(state["ema_state"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} holds a different network from this recipe's: {error}") from error
        self.iteration, self.best, self.start = state["iteration"], state["best"], state.get("start")
        self.validation_due = state["validation_due"]
        if (code := state.get("network_code", network_code())) != network_code():
            allowed.append(f"code in models/ (checksum) {code} -> {network_code()}")
        self.new_changes = [f"at step {self.iteration} {change}" for change in allowed]
        self.changes = [*state["changes"], *self.new_changes]
        set_random_state(state["random_state"][self.rank % len(state["random_state"])])
        start = start_weights(self.config)
        if "start" in state and start and start.is_file() and checksum(start) != self.start:
            logger.info(
                "%s: not the weights that this run started from; it resumes from %s. To start from these weights, use "
                "another --job_name, or move that file away",
                start,
                path,
            )

    def begin(self) -> None:
        """Check every image's header and record the configuration beside the results."""
        with distributed.fail_together():
            if distributed.is_main():
                self._stop_mark.unlink(missing_ok=True)
                self.data.check()
                if not self.iteration:
                    self._set_weights_aside()
                save_config(
                    self.config,
                    results_dir(self.config.job_name) / f"config_stage{self.config.stage}.yaml",
                    git=git_hash(),
                    **versions(),
                    processes=self.world_size,
                    device=self.device,
                    **{f"change {k}": change for k, change in enumerate(self.changes, 1)},
                )

    def _set_weights_aside(self) -> None:
        """Copy best_ and final_ weights of another origin, such as released ones, before this run writes its own.

        They are removed once this run has a state: until then, it starts anew if it fails, and train.start_from may
        name them.
        """
        self._foreign = [path for path in (self.path("best"), self.path("final")) if path.exists()]
        for path in self._foreign:
            if checksum(path) not in map(checksum, path.parent.glob(f"earlier*_{path.name}")):
                names = (path.with_name(f"earlier{k}_{path.name}") for k in itertools.count(1))
                kept = next(name for name in names if not name.exists())
                with atomic(kept) as temporary:
                    shutil.copyfile(path, temporary)
                logger.info("%s does not belong to a run that can be resumed; kept as %s", path, kept.name)

    def save(self, same_step: bool = False) -> None:
        """Write last_: everything that the rest of the run depends on.

        Args:
            same_step: replace a state of the same step, instead of making it the previous one.

        Raises:
            NonFiniteError: a weight is NaN or infinite. The last step's gradient was finite; its result need not be.
        """
        if culprit := nonfinite_parameter(self.network) or nonfinite_parameter(self.released):
            raise NonFiniteError(
                f"step {self.iteration}: parameter {culprit} is not finite after the step. The last saved state "
                "is kept; try a lower optim.lr"
            )
        random_states = distributed.gather(random_state())
        with distributed.fail_together():
            if distributed.is_main():
                state = {
                    "epoch": self.epoch,
                    "iteration": self.iteration,
                    "recipe": self.recipe,
                    "start": self.start,
                    "network_code": network_code(),
                    "changes": self.changes,
                    "model_state": self.network.state_dict(),
                    "optimizer_state": self.optimizer.state_dict(),
                    "ema_state": self.ema.state_dict() if self.ema else None,
                    "best": self.best,
                    "validation_due": self.validation_due,
                    "random_state": random_states,
                }
                save_state(state, self.path("last"), same_step)
                while self._foreign:
                    self._foreign.pop().unlink(missing_ok=True)

    def release(self, kind: str) -> None:
        """Write the released weights as best_ or final_, from which alone the network can be rebuilt."""
        with distributed.fail_together():
            if distributed.is_main():
                save_atomic(described_state(self.released), self.path(kind))

    def autocast(self) -> torch.autocast:
        """The network's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    @property
    def _stop_mark(self) -> Path:
        return results_dir(self.config.job_name) / f".stopped_stage{self.config.stage}"

    def mark_stopped(self) -> None:
        """Leave a file that tells a requested stop from an error: torchrun drops its processes' exit status."""
        with distributed.fail_together():  # no rank ends, and has torchrun stop the others, before all are done
            if distributed.is_main():
                write_atomic(self._stop_mark, f"{self.iteration}\n")
