"""Starts scripts from a process that has imported PyTorch: real processes and signals, without seconds of imports.

A `Script` is a fork of a server: this file, run once for all processes of a test run. From the fork on all is as in
``python SCRIPT``, to its exit handlers. Modules are not destroyed after that, unless an exception ends it, to save
half a second of copying the server's memory. Linux only.
"""

import atexit
import functools
import gc
import importlib
import inspect
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

ADDRESS = "TESTS_FORK_SERVER"  # the environment variable with the server's
# The slow imports of the scripts, and none of this project's, of which a copy's scripts have their own.
PRELOADED = "torch._dynamo torch.utils.tensorboard torchvision cv2 einops PIL.Image scipy.stats tqdm yaml".split()


class Script:
    """A running script, used like a `subprocess.Popen`.

    Args:
        argv: ``[path, …]`` or ``["-m", module, …]``.
        cwd: The folder that it runs in.
        output: A file for what it prints; None for this process's; `subprocess.PIPE` to read its standard error from
            `stderr`; by default nowhere.
        env: Its environment; by default this process's.
        nice: How much lower its priority is.
        file_limit: Bytes beyond which none of its files can grow.
        start_new_session: Whether it leads a group of processes.
    """

    def __init__(
        self,
        argv: list[str],
        cwd: Path,
        output: IO | int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        nice: int = 0,
        file_limit: int | None = None,
        start_new_session: bool = False,
    ):
        self.args, self.returncode, self.stderr = argv, None, None
        with open(os.devnull, "w") as nowhere:
            out, err = (1, 2) if output is None else ((nowhere if isinstance(output, int) else output).fileno(),) * 2
            if output == subprocess.PIPE:
                reader, err = os.pipe()
                self.stderr = os.fdopen(reader)
            status, report = os.pipe()
            request = {"argv": argv, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
            request |= {"nice": nice, "file_limit": file_limit, "start_new_session": start_new_session}
            socket.send_fds(_server(), [json.dumps(request).encode()], [out, err, report])
            os.close(report)
            if self.stderr:
                os.close(err)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, or minus the number of the signal that it died of."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended, and its status is on the way
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()


def popen(command: list[str], stdin: None = None) -> Script:
    """In place of `subprocess.Popen([sys.executable, SCRIPT, …])`."""
    return Script(command[1:], Path.cwd(), output=None)


def python(folder: Path) -> str:
    """The path of an interpreter in ``folder`` for shell scripts: what it runs is a fork as well."""
    _server()
    path, here = folder / "forking_python", str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import forks; status = forks.popen(sys.argv).wait()"
    path.write_text(f"#!{sys.executable} -SE\n{code}\nsys.exit(status if status >= 0 else 128 - status)\n")
    path.chmod(0o755)
    return str(path)


def share_server() -> None:
    """Start the server for this process and those that it starts."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")  # a free name of Linux's own
    listener.listen()
    os.environ[ADDRESS] = listener.getsockname().decode().replace("\0", "@")
    ours, theirs = socket.socketpair()
    with theirs, listener:
        files = [theirs.fileno(), listener.fileno()]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ  # scripts are as many as cores
        subprocess.Popen([sys.executable, __file__, *map(str, files)], pass_fds=files, env=environment)
    atexit.register(ours.close)  # its end comes with that of this socket


@functools.cache
def _server() -> socket.socket:
    if ADDRESS not in os.environ:
        share_server()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ[ADDRESS].replace("@", "\0"))
    return connection


def _serve(owner: socket.socket, listener: socket.socket) -> tuple[dict, list[int]]:
    """Forks for each request, and tells how the forks end; returns in a fork, with its request and output files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clients: set[socket.socket] = set()
    running: dict[int, tuple[int, int]] = {}  # by descriptors of processes
    while True:
        ready = set(select.select([owner, listener, *clients, *running], [], [])[0])
        if owner in ready:
            os._exit(0)
        if listener in ready:
            client = listener.accept()[0]
            _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            clients.add(client) if user == os.getuid() else client.close()  # anybody can find the address
        for process in ready & running.keys():
            pid, report = running.pop(process)
            _tell(report, os.waitpid(pid, 0)[1])
            os.close(process), os.close(report)
        for client in ready & clients:
            message, files, *_ = socket.recv_fds(client, 1 << 18, 3)
            if not message:
                clients.remove(client), client.close()
                continue
            *output, report = files
            if (pid := os.fork()) == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for connection in (owner, listener, *clients):
                    connection.close()
                for file in (report, *running, *(other for _, other in running.values())):
                    os.close(file)
                return json.loads(message), output
            for file in output:
                os.close(file)
            _tell(report, pid)
            running[os.pidfd_open(pid)] = pid, report


def _tell(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody reads it any more
        os.write(report, f"{number}\n".encode())


def run(argv: list[str]) -> None:
    """Run a script or module as the main program of this process, and end the process without destroying modules."""
    code = None
    try:
        if argv[0] == "-m":
            sys.argv, sys.path[0] = argv[1:], os.getcwd()
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = argv, str(Path(argv[0]).resolve().parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    gc.collect()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    owner, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    for name in PRELOADED:
        with suppress(ImportError):  # the script says so itself, if it needs it
            importlib.import_module(name)
    inspect.getmodule(inspect.currentframe(), "no file")  # fills its table of modules, or else each fork does
    weakref.finalize._registry.clear()  # or else each fork takes PyTorch's operators out of its tables when it ends
    gc.freeze()  # or else each fork walks, and so copies, all that was imported when it ends
    request, (out, err) = _serve(owner, listener)
    if request["start_new_session"]:
        os.setsid()
    os.dup2(out, 1), os.dup2(err, 2)
    os.close(out), os.close(err)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[1:1] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    os.nice(request["nice"])
    if request["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    run(request["argv"])


if __name__ == "__main__":
    main()
