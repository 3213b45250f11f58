"""Progress bar, log file and TensorBoard."""

import contextlib
import logging
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .. import distributed

logger = logging.getLogger(__name__)


class RunLogger:
    """The main process's records of a run; on other ranks all calls do nothing.

    Args:
        folder: gets train_stageN.log and logs/stageN.
        total: steps of the whole run.
        start: steps already done; what was logged beyond them is removed from the curves, since it is done again.
    """

    def __init__(self, folder: Path, stage: int, total: int, start: int, active: bool):
        self.active, self.total, self.start = active, total, start
        self.began = time.perf_counter()
        self.last_score = ""
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = _LogFile(folder / f"train_stage{stage}.log")
        self.file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        logging.getLogger().addHandler(self.file)
        self.board = SummaryWriter(folder / "logs" / f"stage{stage}", purge_step=start + 1)
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=f"stage {stage}",
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def step(self) -> None:
        if self.active:
            self.bar.update()

    def train(self, means: dict[str, float], step: int, epoch: str = "") -> None:
        """Curves of the loss, its terms and the other means; at the end of an ``epoch`` also a line for the log."""
        if self.active:
            self.bar.set_postfix_str(f"loss {means['loss']:.4f}{self.last_score}", refresh=False)
            for name, value in means.items():
                self._draw("scalar", f"train/{name}", value, step)
        if self.active and epoch:
            seconds = int((time.perf_counter() - self.began) / (step - self.start) * (self.total - step))
            line = (
                f"epoch {epoch}  step {step}/{self.total}  loss {means['loss']:.5f}{self.last_score}  "
                f"{means['images per second']:.1f} images/s  {means['peak memory GiB']:.1f} GiB  "
                f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
            )
            if sys.stderr.isatty():  # where the progress bar says the same
                self.file.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, line, (), None))
            else:
                logger.info(line)

    def score(self, scores: dict[str, float], pictures: list[torch.Tensor], epoch: int, images: int, step: int) -> None:
        """A validation's means, and (3, H, W) pictures in [0, 1] (blurred, restored and sharp side by side)."""
        if self.active:
            self.last_score = f", PSNR {scores['psnr']:.2f} dB"
            for name, value in scores.items():
                self._draw("scalar", f"validation/{name}", value, step)
            for k, picture in enumerate(pictures):
                self._draw("image", f"blurred, restored, sharp/{k}", picture, step)
            psnr, ssim = scores["psnr"], scores["ssim_matlab_rgb"]
            logger.info(f"epoch {epoch}: validation PSNR {psnr:.3f} dB, ssim_matlab_rgb {ssim:.4f} ({images} images)")

    def close(self) -> None:
        if self.active:
            self.bar.close()
            logging.getLogger().removeHandler(self.file)
            for record in (self.board, self.file):
                with contextlib.suppress(OSError):  # of a full disk
                    if record is not None:
                        record.close()

    def _draw(self, kind: str, *arguments) -> None:
        """Call one of the writer's ``add_`` methods; a full disk ends the curves, not the training."""
        if self.board is None:
            return
        try:
            getattr(self.board, f"add_{kind}")(*arguments)
        except OSError as error:
            self.board = None
            logger.warning("TensorBoard logging has stopped: %s", error)


class _LogFile(logging.FileHandler):
    """A log file that ends with one line, instead of a traceback per message, when it cannot be written any more."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logger.warning("logging to %s has stopped: %s", self.baseFilename, sys.exc_info()[1])


class Meter:
    """Means of the loss's terms and images per second since they were last asked for, without waiting for a GPU."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.images, self.began = 0, 0, time.perf_counter()

    def add(self, terms: dict[str, torch.Tensor], images: int) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.double()
        self.steps, self.images = self.steps + 1, self.images + images

    def means(self) -> dict[str, float]:
        """The mean of each term over steps and ranks, and images per second over all ranks; starts anew."""
        stacked = distributed.sum_over_ranks(torch.stack(list(self.sums.values())))
        means = dict(zip(self.sums, (stacked / (self.steps * distributed.world_size())).tolist(), strict=True))
        means["images per second"] = self.images / (time.perf_counter() - self.began)
        self.reset()
        return means
