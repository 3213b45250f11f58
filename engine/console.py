"""Messages of the scripts: log lines on stderr, and one readable line instead of a traceback."""

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import select
import sys
from collections.abc import Iterator

import torch

from . import distributed
from .memory import is_out_of_memory

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
UNREAD = 141  # and of one that SIGPIPE ended
PACKAGES = {"analysis", "benchmarks", "datasets", "engine", "losses", "metrics", "models"}


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Log the main process's messages; on an error of the input or the machine, print one line and exit.

    The exit status is 2 for errors that `describe` has a line for, 130 for Ctrl-C. Other errors are bugs: a traceback.
    """
    main = os.environ.get("RANK", "0") == "0"  # torchrun's; the processes have not joined their group yet
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    logging.captureWarnings(True)
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command resumes from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(UNREAD)
        line = describe(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        logging.getLogger(__name__).debug("where it was raised", exc_info=True)
        sys.exit(2)
    finally:
        # Data loader processes ignore signals: after an error Python would wait for them forever.
        for process in multiprocessing.active_children():
            process.kill()


def _nobody_reads() -> bool:
    """Whether standard output leads to a program that has ended, such as ``head``; if so, it is turned off."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
    return True


def check_device(parser: argparse.ArgumentParser, name: str | None) -> torch.device:
    """The device called ``name``; for an impossible one, end with the usage and an error."""
    try:
        return distributed.device(name)
    except (RuntimeError, ValueError) as error:
        parser.error(f"--device: {error}")


def describe(error: BaseException) -> str | None:
    """One line for the user on an error of the input or the machine; None for a bug.

    Exceptions defined in this repository carry a message for the user. File system errors get a line with the file's
    name, and so does a lack of memory.
    """
    module = type(error).__module__
    if module == "__main__":  # of a module run with python -m
        module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if module.partition(".")[0] in PACKAGES:
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{os.fspath(error.filename)}: {reason}" if error.filename is not None else reason
    if is_out_of_memory(error):
        return f"out of memory ({error})" if str(error) else "out of memory"
    return None
