"""Being asked to stop: SIGTERM and SIGUSR1 (Slurm's warnings) and Ctrl-C end a run after the current step, saved."""
import contextlib
import signal
from collections.abc import Iterator

STOPPING = [name for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StopRequest:
    """``received`` names the signal that has come, None while there was none."""

    received: str | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note these signals instead of dying of them; a second Ctrl-C interrupts at once."""
    request, before = StopRequest(), {}

    def note(number, frame):
        if request.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number).name

    for name in STOPPING:
        before[name] = signal.signal(getattr(signal, name), note)
    try:
        yield request
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
