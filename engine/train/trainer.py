"""The training loop: one network, one loss, one optimiser, one cosine; on one device or many, stopped and resumed."""

import contextlib
import dataclasses
import itertools
import logging
import traceback
import warnings

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.files import write_atomic
from datasets.images import ImageError
from losses import DeblurLoss
from models import XYScanNet, load_weights
from models.ops.selective_scan import resolve_backend
from models.weights import described_state

from .. import distributed
from ..config import Config, ConfigError, models_dir, results_dir, save_config, to_yaml
from ..memory import GIB, OutOfMemory, is_out_of_memory, peak_memory
from ..provenance import git_hash, versions
from . import recipe
from .checkpoint import CheckpointError, load_state, random_state, save_atomic, save_state, set_random_state
from .data import TrainingData, reader_ended
from .logger import Meter, RunLogger
from .muon import Muon
from .nan_check import NonFiniteError, first_nonfinite, nonfinite_parameter
from .schedule import cosine
from .signals import stop_requests
from .validation import Validation

logger = logging.getLogger(__name__)

LOG_EVERY = 50  # steps between two points in TensorBoard


class Trainer:
    """One stage of one job, from its configuration."""

    def __init__(self, config: Config, device_name: str | None = None):
        self.config, self.device = config, distributed.device(device_name)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        torch.manual_seed(config.train.seed)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True

        # Data.
        self.data = TrainingData(config, pin_memory=self.device.type == "cuda")

        shares = self.world_size * config.train.accumulate
        if config.data.batch_size % shares:
            raise ConfigError(
                f"data.batch_size: {config.data.batch_size} images cannot be shared equally by "
                f"{self.world_size} processes x {config.train.accumulate} micro-steps (train.accumulate)"
            )

        # Network, optimiser, weights' average.
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        resolve_backend(config.model.scan_backend, self.device, self.dtype)  # refused now, not at the first step
        self.network = XYScanNet(
            **dataclasses.asdict(config.model), checkpoint_activations=config.train.checkpoint_activations
        ).to(self.device, self.dtype)
        self.optimizer = (
            Muon(self.network, config.optim.lr)
            if config.optim.name == "muon"
            else torch.optim.Adam(self.network.parameters(), lr=config.optim.lr, betas=(0.9, 0.999))
        )
        self.ema = (
            AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema_decay))
            if config.train.ema_decay
            else None
        )
        self.iteration = 0
        self.best = {"psnr": float("-inf"), "epoch": 0}
        self.validation_due = False  # whether the weights as they are have still to be scored
        self.recipe = recipe.recipe_of(config, self.data.train_pairs)
        self.changes: list[str] = []  # of the recipe since the run's first step
        self.new_changes: list[str] = []  # of those, the ones that resuming has found

    def describe(self) -> str:
        """The resolved configuration, the data found and the size of the run."""
        config, parameters = self.config, sum(p.numel() for p in self.network.parameters())
        share = config.data.batch_size // (self.world_size * config.train.accumulate)
        return (
            f"{to_yaml(config)}\n"
            f"data: {len(self.data.train_pairs)} training pairs, {len(self.data.val_pairs)} validation pairs\n"
            f"network: {parameters:,} parameters, {config.train.precision}, on {self.device}\n"
            f"run: {self.data.iterations:,} iterations of {config.data.batch_size} images "
            f"({self.world_size} processes x {config.train.accumulate} micro-steps x {share}), "
            f"{self.data.iterations * config.data.batch_size / len(self.data.train_pairs):,.1f} epochs"
        )

    # Weights and states.

    def _path(self, kind: str):
        return models_dir(self.config.job_name) / f"{kind}_XYScanNet_stage{self.config.stage}.pth"

    def load_weights(self, path) -> None:
        """Begin with the weights in ``path`` (released or our own), strictly."""
        load_weights(self.network, path)
        if self.ema:
            self.ema.module.load_state_dict(self.network.state_dict())
        logger.info("starting from %s", path)

    def resume(self) -> bool:
        """Go on from the last training state, exactly; False where there is none.

        Raises:
            CheckpointError: there is one, and this run would not be its continuation.
        """
        with distributed.together():
            state = load_state(self._path("last"))
            if state is not None:
                self._go_on_from(state)
        return state is not None

    def _go_on_from(self, state: dict) -> None:
        path = self._path("last")
        forbidden, allowed = recipe.differences(recipe.recipe_in(state), self.recipe)
        if forbidden:
            raise CheckpointError(
                f"{path} was made with {'; '.join(forbidden)}: it would go on as another run. "
                "Set it back, or use another --job_name"
            )
        if state["iteration"] > self.data.iterations:
            raise CheckpointError(
                f"{path} is at step {state['iteration']}, beyond the {self.data.iterations} of this "
                "run (train.iterations or train.epochs): there is nothing left to do"
            )
        try:
            self.network.load_state_dict(state["model_state"])
            self.optimizer.load_state_dict(state["optimizer_state"])
            if self.ema:
                self.ema.load_state_dict(state["ema_state"] or self.ema.state_dict())
        except (RuntimeError, ValueError, KeyError) as error:  # a state that holds no whole recipe
            raise CheckpointError(f"{path} is of another network than this recipe's: {error}") from error
        self.iteration, self.best = state["iteration"], state["best"]
        self.validation_due = state.get("validation_due", False)
        self.changes = [*state.get("changes", []), *(f"at step {self.iteration} {change}" for change in allowed)]
        self.new_changes = self.changes[len(self.changes) - len(allowed) :]
        set_random_state(state["random_state"][self.rank % len(state["random_state"])])

    def save(self, same_step: bool = False) -> None:
        """Write last_: everything that the rest of the run depends on.

        same_step: in place of a state of the same step.
        """
        self._refuse_nonfinite()
        random_states = distributed.gather(random_state())
        with distributed.together():
            if distributed.is_main():
                save_state(
                    {
                        "epoch": self.data.epoch(self.iteration),
                        "iteration": self.iteration,
                        "recipe": self.recipe,
                        "changes": self.changes,
                        "model_state": self.network.state_dict(),
                        "optimizer_state": self.optimizer.state_dict(),
                        "ema_state": self.ema.state_dict() if self.ema else None,
                        "best": self.best,
                        "validation_due": self.validation_due,
                        "random_state": random_states,
                    },
                    self._path("last"),
                    same_step,
                )

    def _refuse_nonfinite(self) -> None:
        """The last step's gradient was finite; what it made of the weights need not be."""
        culprit = nonfinite_parameter(self.network) or nonfinite_parameter(self.released)
        if culprit:
            raise NonFiniteError(
                f"step {self.iteration}: parameter {culprit} is not finite after the step. The state "
                "before is kept; try a lower optim.lr"
            )

    @property
    def released(self) -> XYScanNet:
        """The network whose weights are scored and released: the average where there is one."""
        return self.ema.module if self.ema else self.network

    def _release(self, kind: str) -> None:
        with distributed.together():
            if distributed.is_main():
                save_atomic(described_state(self.released), self._path(kind))

    # The run.

    def fit(self) -> bool:
        """Train to the end (True), or to a request to stop: then the state is saved and the same command goes on."""
        config = self.config
        with self._explained():
            self._prepare()
            self.run_logger = RunLogger(
                results_dir(config.job_name), config.stage, self.data.iterations, self.iteration, distributed.is_main()
            )
            try:
                with stop_requests() as request, logging_redirect_tqdm():
                    self._tell_of_resuming()
                    finished = self._train(request)
                    if finished:
                        self._release("final")
                        logger.info("finished: %s", self._path("final"))
                    else:
                        self._mark_stopped()
                        logger.info(
                            "stopped by %s at step %d; the same command goes on from there",
                            request.reason or "another rank",
                            self.iteration,
                        )
            finally:
                self.run_logger.close()
                self.batches = None  # ends its processes while Python can still wait for them
        return finished

    @contextlib.contextmanager
    def _explained(self):
        """Give the machine's failures a line that says what to do."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"out of memory at step {self.iteration} ({str(error).splitlines()[0] if str(error) else 'CPU'}). "
                    "Less is needed with train.accumulate=2 or more, train.checkpoint_activations=true, "
                    "train.precision=bf16, or a smaller data.patch_size"
                ) from error
            if ended := reader_ended(error):
                traceback.clear_frames(error.__traceback__)  # which keep the other readers from ending
                raise ended from error
            if distributed.lost_peer(error):
                raise distributed.PeerError(
                    "another process of this run has ended; what it said tells why. The last "
                    "saved state is kept, and the same command goes on from it"
                ) from error
            raise

    def _prepare(self) -> None:
        """Check every image's header, record the configuration, and load what training needs but resuming does not."""
        config = self.config
        with distributed.together():
            if distributed.is_main():
                self._stopped_mark.unlink(missing_ok=True)
                self.data.check()
                changes = {f"change {k}": change for k, change in enumerate(self.changes, 1)}
                save_config(
                    config,
                    results_dir(config.job_name) / f"config_stage{config.stage}.yaml",
                    git=git_hash(),
                    **versions(),
                    processes=self.world_size,
                    device=self.device,
                    **changes,
                )
        with distributed.main_first():
            self.loss = DeblurLoss(config.loss.edge_weight, config.loss.contrast_weight, pixel=config.loss.pixel).to(
                self.device, self.dtype
            )
        self.batches = self.data.batches(self.iteration)  # forks processes now, before other threads hold locks
        self.validation = Validation(self.data.validation_images(), self.device) if self.data.val_pairs else None
        # Strides of sides of one pixel or channel differ there, which costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        gpus = [self.device.index] if self.device.type == "cuda" else None
        self.parallel = (
            DistributedDataParallel(self.network, device_ids=gpus) if distributed.is_distributed() else self.network
        )

    def _tell_of_resuming(self) -> None:
        if self.iteration:
            logger.info("resuming from %s at step %d of %d", self._path("last"), self.iteration, self.data.iterations)
        for change in self.new_changes:
            logger.info("changed %s", change)

    @property
    def _stopped_mark(self):
        """A file that is there after a stop by request alone: torchrun does not hand on its processes' exit status."""
        return results_dir(self.config.job_name) / f".stopped_stage{self.config.stage}"

    def _mark_stopped(self) -> None:
        with distributed.together():  # also: no rank ends, and has torchrun stop the others, before all are done
            if distributed.is_main():
                write_atomic(self._stopped_mark, f"{self.iteration}\n")

    def _learning_rate(self) -> float:
        """The cosine's value: by epoch where the run's length is given in epochs, else by iteration."""
        train, optim = self.config.train, self.config.optim
        position = self.data.epoch(self.iteration) if train.epochs else self.iteration
        length = optim.cosine_length or optim.cosine_start + (train.epochs or train.iterations)
        return cosine(optim.cosine_start + position, length, optim.lr, optim.min_lr)

    def _train(self, request) -> bool:
        """Step until the end (True) or until any rank is asked to stop (False)."""
        self.network.train()
        if self.validation_due:
            self._validate()
        meter = Meter()
        while self.iteration < self.data.iterations:
            micro_batches = list(itertools.islice(self.batches, self.config.train.accumulate))
            meter.add(self.train_step(micro_batches), self.config.data.batch_size)
            self.iteration += 1
            self.run_logger.step(meter.last_loss)
            epoch_ended = self.data.epoch(self.iteration) > self.data.epoch(self.iteration - 1)
            last = self.iteration == self.data.iterations
            if self.iteration % LOG_EVERY == 0 or epoch_ended or last:
                self._log(meter, epoch_ended or last)
            stop = distributed.any_rank(request.reason is not None, self.device)
            self.validation_due = self.validation is not None and (self._due(self.config.train.validate_every) or last)
            if self.validation_due or self._due(self.config.train.save_every) or last or stop:
                self.save()  # first: validation takes long, and an image of it may be damaged
            if stop and not last:
                return False
            if self.validation_due:
                self._validate()
        return True

    def _due(self, every: int) -> bool:
        """Whether the step just made has completed an epoch whose number is a multiple of ``every``."""
        return self.data.epoch(self.iteration) // every > self.data.epoch(self.iteration - 1) // every

    def train_step(self, micro_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Forward, loss, backward for each micro-batch, then one step. Returns the loss's terms, averaged."""
        shares = [[self._to_device(image) for image in batch] for batch in micro_batches]
        mask_sum = self._mean_mask_sum(shares)
        sums: dict[str, torch.Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for k, (blurred, sharp) in enumerate(shares):
            # Gradients are exchanged between ranks with the last micro-batch only.
            last = k == len(shares) - 1 or self.parallel is self.network
            with contextlib.nullcontext() if last else self.parallel.no_sync():
                total, terms = self._losses(self.parallel, blurred, sharp, mask_sum)
                (total / len(shares)).backward()
            for name, term in {"loss": total, **terms}.items():
                sums[name] = sums.get(name, 0) + term.detach() / len(shares)

        # An infinite bound clips nothing: this is the gradients' norm, in one pass.
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), float("inf"))
        if not torch.isfinite(norm + sums["loss"]):
            self._stop_at_nonfinite(shares, mask_sum)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._step()
        if self.ema:
            self.ema.update_parameters(self.network)
        return {**sums, "gradient norm": norm}

    def _step(self) -> None:
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise NonFiniteError(
                f"step {self.iteration}: the optimiser's step is larger than any number of "
                f"{self.dtype}. The state before is kept; try a lower optim.lr than "
                f"{self.config.optim.lr:g}"
            ) from error

    def _losses(self, network, blurred, sharp, mask_sum):
        with self._autocast():
            restored = network(blurred)
        return self.loss(restored, sharp, blurred, mask_sum)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    def _to_device(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 images travel to the device; there they become numbers in [-0.5, 0.5]."""
        return image.to(self.device, non_blocking=True).to(self.dtype) / 255 - 0.5

    def _mean_mask_sum(self, shares) -> torch.Tensor:
        """The contrast term's sum(mask) of the global batch, by share: one loss however the batch is split."""
        own = sum(self.loss.mask_sum(sharp, blurred) for blurred, sharp in shares)
        return distributed.sum_over_ranks(own) / (self.world_size * len(shares))

    def _validate(self) -> None:
        """Score full images, the best network so far is kept, and save that this has been done."""
        if self.validation is not None:
            self._score()
        self.validation_due = False
        self.save(same_step=True)

    def _score(self) -> None:
        try:
            scores, pictures = self.validation(self.released, self._autocast)
        except ImageError as error:
            raise ImageError(
                f"validation: {error}. The state of step {self.iteration} is saved; the same command goes "
                "on with its validation"
            ) from error
        epoch = self.data.epoch(self.iteration)
        self.run_logger.score(scores, pictures, self.iteration)
        logger.info(
            "epoch %d: validation PSNR %.3f dB, ssim_matlab_rgb %.4f (%d images)",
            epoch,
            scores["psnr"],
            scores["ssim_matlab_rgb"],
            len(self.data.val_pairs),
        )
        if scores["psnr"] > self.best["psnr"]:
            self.best = {"psnr": scores["psnr"], "epoch": epoch}
            self._release("best")

    def _log(self, meter: Meter, epoch_ended: bool) -> None:
        terms, speed = meter.means()
        facts = {
            "learning rate": self._learning_rate(),
            "images per second": speed,
            "peak memory GiB": (peak_memory(self.device) or 0) / GIB,
        }
        self.run_logger.scalars({f"train/{name}": value for name, value in {**terms, **facts}.items()}, self.iteration)
        if epoch_ended:
            epoch, epochs = self.data.epoch(self.iteration), self.config.train.epochs
            self.run_logger.epoch(
                f"{epoch}{f'/{epochs}' if epochs else ''}", terms["loss"], speed, self.iteration, self.device
            )

    def _stop_at_nonfinite(self, shares, mask_sum) -> None:
        """Every rank comes here together, for gradients are shared; one whose own batch fails saves it."""
        reports = []
        for k, (blurred, sharp) in enumerate(shares):
            culprit = first_nonfinite(
                self.network, lambda b=blurred, s=sharp: self._losses(self.network, b, s, mask_sum)
            )
            if culprit:
                path = results_dir(self.config.job_name) / f"nonfinite_stage{self.config.stage}_rank{self.rank}.pt"
                names = self.data.names(self.iteration, k)
                save_atomic({"blurred": blurred, "sharp": sharp, "names": names, "iteration": self.iteration}, path)
                reports.append(f"rank {self.rank}: {culprit}; images {', '.join(names)}; batch kept in {path}")
                break
        everywhere = [report for reports in distributed.gather(reports) for report in reports]
        first = everywhere[0] if everywhere else "the failure does not repeat on the same batch"
        raise NonFiniteError(
            f"step {self.iteration}: the loss or a gradient is not finite. {first}. The state before "
            "is kept; try a lower optim.lr or train.precision=fp32"
        )
