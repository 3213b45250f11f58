"""One line of advice for what can go wrong with the machine during training."""

import contextlib
import re
import traceback
from collections.abc import Iterator

from ..memory import OutOfMemory, is_out_of_memory

# PyTorch's message on a data loader process that has died, whenever it notices.
WORKER_DIED = re.compile(r"DataLoader worker \(pid[^)]*\) [^\n]*")


# What makes a step need less memory.
ADVICE = (
    "To reduce it, use train.accumulate=2 or more, train.checkpoint_activations=true, train.precision=bf16, or a "
    "smaller data.patch_size"
)


class WorkerError(RuntimeError):
    """A data loader process has died. The message says which and how."""


@contextlib.contextmanager
def explain_failures() -> Iterator[None]:
    """Turn out-of-memory errors and dead data loader processes into errors that say what to do.

    Raises:
        OutOfMemory, WorkerError
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"out of memory ({str(error).splitlines()[0] if str(error) else 'CPU'}). {ADVICE}"
            ) from error
        died = WORKER_DIED.match(str(error)) if isinstance(error, RuntimeError) else None
        if died or isinstance(error, (ConnectionError, EOFError)):  # the latter: it died while it handed over a batch
            traceback.clear_frames(error.__traceback__)  # they keep the other workers from ending
            what = died[0] if died else f"DataLoader worker has died while it handed over a batch ({error})"
            raise WorkerError(
                f"{what.rstrip(' .')}: perhaps the system ran out of memory; try fewer data.workers, or "
                "data.workers=0 to read in the training process"
            ) from error
        raise
