"""A few of the random attacks, and that the harness itself can fail."""

import signal

import pytest

from tests import torture
from tests.arena import Ended, Failure

TRACE = "Traceback (most recent call last):\n  File x, line 1, in main\nValueError: x\n"


@pytest.mark.parametrize(
    "ended",
    [
        Ended(1, TRACE),
        Ended(0, TRACE),
        Ended(-signal.SIGSEGV, ""),
        Ended(-signal.SIGBUS, "x", signal.SIGTERM),
        Ended(130, TRACE, signal.SIGINT),
        Ended(2, ""),
    ],
)
def test_what_is_no_clean_end(ended):
    with pytest.raises(Failure):
        ended.check()


@pytest.mark.parametrize(
    "ended",
    [
        Ended(0, ""),
        Ended(2, "error: x"),
        Ended(-signal.SIGTERM, "", signal.SIGTERM),
        Ended(-signal.SIGKILL, TRACE, signal.SIGKILL),
        Ended(1, TRACE.replace("ValueError", "ChildFailedError")),
    ],
)
def test_what_is_a_clean_end(ended):
    ended.check()


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_silently_wrong(capsys):
    """Each of these once; `python -m tests.torture` goes on with all kinds."""
    kinds = ["killed training", "killed rank", "killed predict_GoPro", "full disk: training", "two at once"]
    kinds += ["damaged last_", "damaged cache pixels"]
    assert torture.main(["--attempts", str(len(kinds)), "--attack", *kinds]) == 0, capsys.readouterr().out
