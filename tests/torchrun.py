"""torchrun, whose ranks are forks of it instead of new interpreters: they need not import PyTorch again.

Usage: torchrun.py RANKS SCRIPT [ARGUMENT …]. The ranks are its children from the start, before it has threads.
"""

import json
import os
import subprocess
import sys
import time

from forks import run
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.run import main as torchrun


class Rank:
    """A child that waits for its command; torchrun uses it like a `subprocess.Popen`."""

    def __init__(self, pid: int, command: int):
        self.pid, self.command, self.returncode = pid, command, None

    def begin(self, args: tuple[str, ...], env: dict[str, str]) -> "Rank":
        with os.fdopen(self.command, "w") as pipe:
            print(json.dumps([args[2:], env]), file=pipe)  # without python and -u
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout)
            time.sleep(0.01)


def be_a_rank(command: int) -> None:
    with os.fdopen(command) as pipe:
        line = pipe.readline()
    if line:  # torchrun has not died before
        argv, environment = json.loads(line)
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        run(argv)


def main() -> None:
    count, *command = sys.argv[1:]
    ranks = []
    for _ in range(int(count)):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(writer)
            return be_a_rank(reader)
        os.close(reader)
        ranks.append(Rank(pid, writer))
    waiting = iter(ranks)
    dynamic_rendezvous.get_method_name = str  # it reads the source of all callers, many times a second, for a log
    SubprocessHandler._popen = lambda self, args, env: next(waiting).begin(args, env)
    torchrun(["--standalone", f"--nproc_per_node={count}", *command])


if __name__ == "__main__":
    main()
