"""How scripts speak to a person: log lines on stderr, and one readable line for a mistake instead of a traceback."""
import contextlib
import logging
import multiprocessing
import sys
from collections.abc import Iterator

from datasets.cache import CacheError
from datasets.images import ImageError
from datasets.layouts import LayoutError
from models import WeightsError
from models.selective_scan import BackendError

from . import distributed
from .checkpoint import CheckpointError
from .config import ConfigError
from .guard import NonFiniteError

MISTAKES = (BackendError, CacheError, CheckpointError, ConfigError, ImageError, LayoutError, NonFiniteError,
            WeightsError, distributed.DeviceError, FileNotFoundError)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Log the main process's messages; end with exit code 2 and one line where the input is at fault."""
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.WARNING, format="%(message)s")
    logging.captureWarnings(True)
    try:
        yield
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it was raised", exc_info=True)
        sys.exit(2)
    finally:
        # Reading processes ignore signals: after an error Python would ask them to stop and wait for ever.
        for process in multiprocessing.active_children():
            process.kill()
