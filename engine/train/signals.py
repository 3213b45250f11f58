"""Requests to stop, after which a run saves its state once the current step is done.

SIGTERM, SIGUSR1 (Slurm's warnings), SIGHUP (a lost connection, except under nohup) and Ctrl-C.

torchrun forwards SIGTERM and Ctrl-C to its processes. SIGUSR1 and SIGKILL end it without notice to them, so its end is
a request to stop, too.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

# Signals by which terminals, ssh and batch systems end a job; only SIGINT exists on every platform.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name)]
STOPPED = 75  # exit status (EX_TEMPFAIL) of a run that was asked to stop: the same command resumes
LAUNCHER = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


class StopRequest:
    """``received`` names the signal that has arrived, None before."""

    received: str | None = None

    @property
    def reason(self) -> str | None:
        """Why to stop: the signal, or that torchrun has ended; None while there is no reason."""
        if self.received is None and LAUNCHER is not None and os.getppid() != LAUNCHER:
            return "the end of torchrun"
        return self.received


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record these signals instead of ending; a second Ctrl-C interrupts at once."""
    request, before = StopRequest(), {}

    def note(number, frame):
        if request.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number).name

    for number in STOP_SIGNALS:
        if signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:  # under nohup
            continue
        before[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
