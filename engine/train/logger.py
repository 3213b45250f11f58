"""What a run tells: a progress bar on a terminal, one line an epoch in the log, everything in TensorBoard."""

import contextlib
import logging
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .. import distributed
from ..memory import GIB, peak_memory

logger = logging.getLogger(__name__)


class RunLogger:
    """The main process's records of a run; on every other rank all calls do nothing."""

    def __init__(self, folder: Path, stage: int, total: int, start: int, active: bool):
        self.active, self.total, self.start = active, total, start
        self.began = time.perf_counter()
        self.last_score: str = ""
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = _LogFile(folder / f"train_stage{stage}.log")
        self.file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        logging.getLogger().addHandler(self.file)
        # What was logged after the saved state is made again.
        self.board = SummaryWriter(folder / "logs" / f"stage{stage}", purge_step=start + 1)
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=f"stage {stage}",
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def step(self, loss: float) -> None:
        if self.active:
            self.bar.set_postfix_str(f"loss {loss:.4f}{self.last_score}", refresh=False)
            self.bar.update()

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        if self.active:
            for name, value in values.items():
                self._draw("scalar", name, value, iteration)

    def score(self, scores: dict[str, float], pictures: list[torch.Tensor], iteration: int) -> None:
        """A validation's means, and (3, H, W) pictures in [0, 1] (blurred, restored and sharp side by side)."""
        if self.active:
            self.last_score = f", PSNR {scores['psnr']:.2f} dB"
            self.scalars({f"validation/{name}": value for name, value in scores.items()}, iteration)
            for k, picture in enumerate(pictures):
                self._draw("image", f"blurred, restored, sharp/{k}", picture, iteration)

    def epoch(self, epoch: str, loss: float, images_per_second: float, iteration: int, device: torch.device) -> None:
        """One line for the log; on a terminal the bar says the same."""
        if self.active:
            seconds = (time.perf_counter() - self.began) / (iteration - self.start) * (self.total - iteration)
            line = (
                f"epoch {epoch}  step {iteration}/{self.total}  loss {loss:.5f}{self.last_score}  "
                f"{images_per_second:.1f} images/s  {(peak_memory(device) or 0) / GIB:.1f} GiB  "
                f"{_hours(seconds)} left"
            )
            (self._file_only if sys.stderr.isatty() else logger.info)(line)

    def _draw(self, kind: str, *arguments) -> None:
        """One of the writer's ``add_`` methods; a full disk ends the curves, not the training."""
        if self.board is None:
            return
        try:
            getattr(self.board, f"add_{kind}")(*arguments)
        except OSError as error:
            self.board = None
            logger.warning("no more curves for TensorBoard: %s", error)

    def _file_only(self, line: str) -> None:
        self.file.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, line, (), None))

    def close(self) -> None:
        if self.active:
            self.bar.close()
            logging.getLogger().removeHandler(self.file)
            for record in (self.board, self.file):
                with contextlib.suppress(OSError):  # of a full disk
                    if record is not None:
                        record.close()


class _LogFile(logging.FileHandler):
    """A log file that ends with one line, not a traceback a message, where it cannot be written any more."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logger.warning("%s is not written any more: %s", self.baseFilename, sys.exc_info()[1])


class Meter:
    """Means of the loss's terms and images per second since they were last asked for."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.images, self.began = 0, 0, time.perf_counter()

    def add(self, terms: dict[str, torch.Tensor], images: int) -> None:
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term.double()
        self.last_loss = float(terms["loss"])
        self.steps, self.images = self.steps + 1, self.images + images

    def means(self) -> tuple[dict[str, float], float]:
        """(mean of each term over steps and ranks, images per second over all ranks); starts anew."""
        stacked = distributed.sum_over_ranks(torch.stack(list(self.sums.values())))
        values = (stacked / (self.steps * distributed.world_size())).tolist()
        result = dict(zip(self.sums, values, strict=True)), self.images / (time.perf_counter() - self.began)
        self._reset()
        return result


def _hours(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
