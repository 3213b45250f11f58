"""The training loop: one network, one loss, one optimiser, one cosine; on one device or many."""

import contextlib
import functools
import itertools
import logging
import warnings

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm.contrib.logging import logging_redirect_tqdm

from datasets.images import ImageError
from losses import DeblurLoss

from .. import distributed
from ..config import results_dir
from ..memory import GIB, OutOfMemory, is_out_of_memory, peak_memory
from .checkpoint import save_atomic
from .data import Batch
from .failures import explain_failures
from .logger import Meter, RunLogger
from .nan_check import NonFiniteError, first_nonfinite
from .optimizers import skips_steps
from .run import TrainingRun
from .signals import StopRequest, stop_requests
from .validation import validate

logger = logging.getLogger(__name__)

LOG_EVERY = 50  # steps between two points in TensorBoard


class Trainer:
    """Trains a run from where it stands to its end."""

    @explain_failures()
    def __init__(self, run: TrainingRun):
        run.begin()
        config = run.config
        self.run, self.config, self.device = run, config, run.device
        self.data, self.network, self.optimizer = run.data, run.network, run.optimizer
        with distributed.main_first():  # may download VGG19's weights
            self.loss = DeblurLoss(config.loss.terms).to(self.device, run.dtype)
        self.batches = run.data.batches(run.iteration)  # forks processes now, before other threads hold locks
        self.validation_images = run.data.validation_images() if run.data.val_pairs else None
        # Strides of dimensions of size 1 may differ between gradients and DDP's buckets, which costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        gpus = [self.device.index] if self.device.type == "cuda" else None
        self.parallel = (
            DistributedDataParallel(run.network, device_ids=gpus) if distributed.is_distributed() else run.network
        )
        self.failed_step = torch.tensor(-1, device=self.device)  # the first that was not finite, see `_step`
        self.meter = Meter()
        self.run_logger = RunLogger(
            results_dir(config.job_name), config.stage, run.data.iterations, run.iteration, distributed.is_main()
        )

    @explain_failures()
    def fit(self) -> bool:
        """Train to the end (True), or until asked to stop (False): then the same command resumes."""
        run = self.run
        closing = contextlib.closing
        with closing(self.run_logger), closing(self.batches), stop_requests() as request, logging_redirect_tqdm():
            if run.iteration:
                logger.info("resuming from %s at step %d of %d", run.path("last"), run.iteration, run.data.iterations)
            for change in run.new_changes:
                logger.info("changed %s", change)
            self._train(request)
            if run.finished and not run.validation_due:
                run.release("final")
                logger.info("finished: %s", run.path("final"))
            else:
                run.mark_stopped()
                reason = request.reason or "another rank"
                logger.info("stopped by %s at step %d; the same command resumes from there", reason, run.iteration)
        return run.finished and not run.validation_due

    def _train(self, request: StopRequest) -> None:
        """Step to the end, or until any rank is asked to stop; log, save and validate in between."""
        run, train = self.run, self.config.train
        self.network.train()
        if run.validation_due:
            self._validate(request)
        while not run.finished and not run.validation_due:
            terms = self.train_step(list(itertools.islice(self.batches, train.accumulate)))
            self.meter.add(terms, self.config.data.batch_size)
            self.run_logger.step()
            run.iteration += 1

            stop = distributed.any_rank(request.reason is not None)
            run.validation_due = self.validation_images is not None and (run.due(train.validate_every) or run.finished)
            epoch_ended = run.due(1) or run.finished
            if epoch_ended or run.iteration % LOG_EVERY == 0:
                self._stop_if_nonfinite()
                self._log(epoch_ended)
            if train.snapshot_every and run.due(train.snapshot_every):
                self._stop_if_nonfinite()
                run.release(f"epoch{run.epoch}")  # before the state, after which it would not be due again
            if run.validation_due or run.due(train.save_every) or run.finished or stop:
                self._stop_if_nonfinite()
                run.save()  # before the validation, which takes long and may meet a damaged image
            if stop and not run.finished:
                return
            if run.validation_due:
                self._validate(request)

    def train_step(self, micro_batches: list[Batch]) -> dict[str, torch.Tensor]:
        """Forward, loss and backward for each micro-batch, then one step. Returns the loss and its terms, averaged.

        The host does not wait for the device, see `_step`.
        """
        shares = [self._to_device(batch) for batch in micro_batches]
        mask_sum = self._mean_mask_sum(shares)
        sums: dict[str, torch.Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for k, (blurred, sharp) in enumerate(shares):
            # Gradients are exchanged between ranks with the last micro-batch only.
            exchange = k == len(shares) - 1 or self.parallel is self.network
            with contextlib.nullcontext() if exchange else self.parallel.no_sync():
                total, terms = self._losses(self.parallel, blurred, sharp, mask_sum)
                (total / len(shares)).backward()
            for name, term in {"loss": total, **terms}.items():
                sums[name] = sums.get(name, 0) + term.detach() / len(shares)

        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._step(torch.isfinite(norm + sums["loss"]))
        return {**sums, "gradient norm": norm}

    def _step(self, finite: torch.Tensor) -> None:
        """One step of the optimiser, unless this or an earlier one is not finite: then the weights stay as they are.

        A fused optimiser is told on the device, so that the host need not wait: it finds out in `_stop_if_nonfinite`,
        before anything is logged or saved. For others it waits here, once a step.
        """
        self.failed_step = torch.where(finite | (self.failed_step >= 0), self.failed_step, self.run.iteration)
        if skips_steps(self.optimizer):
            self.optimizer.found_inf = (self.failed_step >= 0).float()
        else:
            self._stop_if_nonfinite()
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.learning_rate
        self.optimizer.step()
        self.run.update_average()

    def _losses(self, network, blurred, sharp, mask_sum):
        with self.run.autocast():
            restored = network(blurred)
        return self.loss(restored, sharp, blurred, mask_sum)

    def _to_device(self, batch: Batch) -> Batch:
        """uint8 images in pinned memory -> numbers in [-0.5, 0.5] on the device."""
        return tuple(image.to(self.device, non_blocking=True).to(self.run.dtype) / 255 - 0.5 for image in batch)

    def _mean_mask_sum(self, shares: list[Batch]) -> torch.Tensor:
        """The contrast term's sum(mask) of the global batch, by share: one loss however the batch is split."""
        own = sum(self.loss.mask_sum(sharp, blurred) for blurred, sharp in shares)
        return distributed.sum_over_ranks(own) / (self.run.world_size * len(shares))

    def _log(self, epoch_ended: bool) -> None:
        means = {
            **self.meter.means(),
            "learning rate": self.optimizer.param_groups[0]["lr"],  # the step's own, not the next one's
            "peak memory GiB": (peak_memory(self.device) or 0) / GIB,
        }
        epochs = f"/{self.config.train.epochs}" if self.config.train.epochs else ""
        self.run_logger.train(means, self.run.iteration, f"{self.run.epoch}{epochs}" if epoch_ended else "")

    def _validate(self, request: StopRequest) -> None:
        """Score full images, keep the best weights so far, and save that this has been done, unless asked to stop."""
        run = self.run
        if self.validation_images is not None:
            try:
                found = validate(
                    self.validation_images,
                    run.released,
                    self.device,
                    run.autocast,
                    stop=lambda: request.reason is not None,
                )
            except ImageError as error:
                raise ImageError(
                    f"validation: {error}. The state of step {run.iteration} is saved; the same command resumes with "
                    "its validation"
                ) from error
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemory(
                    f"validation: out of memory on full images. The state of step {run.iteration} is saved; resume "
                    "with smaller validation images (data.val) or data.val=null"
                ) from error
            if found is None:
                return  # the state is saved, and the same command resumes with this validation
            scores, pictures = found
            self.run_logger.score(scores, pictures, run.epoch, len(self.data.val_pairs), run.iteration)
            if scores["psnr"] > run.best["psnr"]:
                run.best = {"psnr": scores["psnr"], "epoch": run.epoch}
                run.release("best")
        run.validation_due = False
        run.save(same_step=True)
        self.meter.reset()  # this time was not spent on training

    def _stop_if_nonfinite(self) -> None:
        """Wait for the device; if a step's loss or gradient was not finite on any rank, find out where and raise.

        Raises:
            NonFiniteError: naming the step, the first module that produced NaN or Inf, and the images.
        """
        if not distributed.any_rank(bool(self.failed_step >= 0)):
            return
        step = min(step for step in distributed.gather(int(self.failed_step)) if step >= 0)
        shares = [self._to_device(batch) for batch in self.data.read(step)]
        mask_sum, reports = self._mean_mask_sum(shares), []
        for k, (blurred, sharp) in enumerate(shares):
            losses = functools.partial(self._losses, self.network, blurred, sharp, mask_sum)
            culprit = first_nonfinite(self.network, losses)
            if culprit:
                file = f"nonfinite_stage{self.config.stage}_rank{self.run.rank}.pt"
                path, names = results_dir(self.config.job_name) / file, self.data.names(step, k)
                save_atomic({"blurred": blurred, "sharp": sharp, "names": names, "iteration": step}, path)
                reports.append(f"rank {self.run.rank}: {culprit}; images {', '.join(names)}; batch kept in {path}")
                break
        everywhere = [report for reports in distributed.gather(reports) for report in reports]
        first = everywhere[0] if everywhere else "repeating the step on the same batch does not reproduce it"
        raise NonFiniteError(
            f"step {step}: the loss or a gradient is not finite. {first}. The last saved state is kept; "
            f"try a lower optim.lr{' or train.precision=fp32' if self.config.train.precision == 'bf16' else ''}"
        )
