"""How scripts speak to a person: log lines on stderr, and one readable line for a mistake instead of a traceback."""

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator

from . import distributed
from .memory import is_out_of_memory

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
PACKAGES = {"analysis", "datasets", "engine", "losses", "metrics", "models"}


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Log the main process's messages; end with one line and a status where the input or the machine is at fault.

    Status 2 for what `describe` has a line for, 130 for Ctrl-C. Anything else is a fault of the code: a traceback.
    """
    logging.basicConfig(level=logging.INFO if distributed.is_main() else logging.WARNING, format="%(message)s")
    logging.captureWarnings(True)
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it was raised", exc_info=True)
        sys.exit(2)
    finally:
        # Reading processes ignore signals: after an error Python would ask them to stop and wait for ever.
        for process in multiprocessing.active_children():
            process.kill()


def describe(error: BaseException) -> str | None:
    """What to tell the user of an error that is no fault of the code; None for one that is.

    Exceptions defined in this repository are raised with a message for the user. The others that have a line are the
    file system's, with the file's name, and memory's.
    """
    if type(error).__module__.partition(".")[0] in PACKAGES:
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{os.fspath(error.filename)}: {reason}" if error.filename is not None else reason
    if is_out_of_memory(error):
        return f"out of memory ({error})" if str(error) else "out of memory"
    return None
