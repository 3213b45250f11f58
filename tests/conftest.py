"""Small tensors gain nothing from threads, and two processes' threads stand in each other's way."""

import gc
import os
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes of tests
gc.set_threshold(20_000, 20, 50)  # or else a tenth of the time is garbage collection
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or else each of them compiles the whole project again


def pytest_configure(config):
    """Of several processes of pytest-xdist, this one starts the server of scripts for the others."""
    alone = not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput")
    if not alone and sys.platform == "linux":
        from tests.forks import share_server

        share_server()


def pytest_collection_modifyitems(items):
    """Files with most slow tests come first, so that of several processes none ends long after the others."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
