"""What the scripts do: training, prediction, evaluation."""

import sys

_previous = sys.excepthook


def _hook(kind, error, traceback) -> None:
    """Ctrl-C before `console.readable_errors` begins, while PyTorch is imported, is a line as well."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _previous(kind, error, traceback)


sys.excepthook = _hook
