"""Runs Python commands in one process, which imports PyTorch once: a JSON file of [argv, expected status]s.

``["python", "-c", code]``, ``["python", "script.py", …]`` and ``["python", "-m", "module", …]`` run in this process,
anything else in its own. Stops at the first command that ends with another status.
"""

import importlib.util
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch


def run(argv: list[str]) -> int:
    """The exit status of a command."""
    if argv[0] != "python":
        return subprocess.run(argv, timeout=120).returncode
    logging.getLogger().handlers.clear()
    sys.argv = argv[1:]
    try:
        if argv[1] == "-c":
            exec(argv[2], {"__name__": "__main__"})
        elif argv[1] == "-m":
            sys.argv, spec = argv[2:], importlib.util.find_spec(argv[2])
            run_main(spec.origin, spec)
        else:
            run_main(argv[1])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_main(path: str, spec: ModuleSpec | None = None) -> None:
    """As Python runs a script or module, for its own child processes too, which hand over what it defines."""
    module = types.ModuleType("__main__")
    module.__file__, module.__spec__, module.__package__ = path, spec, spec and spec.parent
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)


def main() -> int:
    todo = json.loads(Path(sys.argv[1]).read_text())
    sys.path.insert(0, os.getcwd())
    # Benchmarks fork this process, if it has no threads, instead of a server that would import PyTorch again.
    if torch.get_num_threads() == 1:
        multiprocessing.context._concrete_contexts["forkserver"] = multiprocessing.get_context("fork")
    for argv, expected in todo:
        started = time.perf_counter()
        print(f"$ {' '.join(argv)}", flush=True)
        if (status := run(argv)) != expected:
            print(f"exit status {status} of {' '.join(argv)}, expected {expected}", file=sys.stderr)
            return 1
        print(f"# {time.perf_counter() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
