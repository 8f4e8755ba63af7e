"""Python programs that start at once: forked from a process that has already imported what takes seconds to import.

Each is a process like those of subprocess: a child of the one that asks for it, with the environment, folder, files and
session that it is given, and an exit of its own. Only its imports were made before: a test of these, or of what happens
before them, starts an interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import gc
import importlib
import inspect
import multiprocessing.util
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

LIBRARY = sys.path[1:]  # without a folder of the program's own
if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parents[2]))

from dpexp.machine.environment import THREAD_VARIABLES  # noqa: E402
from dpexp.processes.fork_server import PRELOAD, PRELOADED_FOR  # noqa: E402
from testbed.namespaces import enter  # noqa: E402

IMPORTS = [
    *PRELOAD,
    *PRELOADED_FOR.values(),
    "dpexp.cli.app",
    "dpexp.measurement.job",
    "dpexp.launchers.torchrun_tasks",
]
TORCHRUN, ACCELERATE = "torch.distributed.run", "accelerate.commands.accelerate_cli"
HANDLER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"  # of torchrun
IMPORTS += ["dpexp.analysis.table", "dpexp.report.writer", TORCHRUN]
# Environment variables: the program starts others in this way, as torchrun always does; Python code that it runs first.
NESTED, FIRST = "PROGRAMS_NESTED", "PROGRAMS_FIRST"
SINGLE = dict.fromkeys(THREAD_VARIABLES, "1")
LIBC = ctypes.CDLL(None)
SET_CHILD_SUBREAPER, SET_DEATH_SIGNAL = 36, 1  # of prctl
MAX_BYTES = 2**16  # of an environment


class Program(subprocess.Popen):
    """`[env A=B ...] python [-m|-c] ...`, `torchrun ...` or `accelerate ...`, perhaps behind `ip netns exec NAME`.

    Other commands start as always.
    """

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(super()._execute_child).bind(*given).arguments
        words, namespace = list(map(os.fsdecode, asked["args"])), ""
        if words[:3] == ["ip", "netns", "exec"]:
            namespace, words = words[3], words[4:]
        variables = {}
        while words[0] == "env" and "=" in words[1]:
            name, _, variables[name] = words.pop(1).partition("=")
        words = words[words[0] == "env" :]
        if module := {"torchrun": TORCHRUN, "accelerate": ACCELERATE}.get(words[0]):
            words[:1] = ["python", "-m", module]
        if words[1:2] == ["-u"]:
            del words[1]
        if words[0] not in (sys.executable, "python") or not (words[1] in ("-m", "-c") or words[1].endswith(".py")):
            super()._execute_child(*given)
            return
        pipes = [asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        files = [standard if own == -1 else own for standard, own in enumerate((pipes[0], pipes[3], pipes[5]))]
        environment = dict(os.environ if asked["env"] is None else asked["env"]) | variables
        request = asked["start_new_session"], words[1:], environment, str(asked["cwd"] or Path.cwd()), namespace
        LIBC.prctl(SET_CHILD_SUBREAPER, 1)  # who loses its parent below this process becomes its child
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
            end.connect("\0" + server())
            socket.send_fds(end, [pickle.dumps(request)], files)
            self.pid = int(end.recv(100))
            end.recv(100)
        LIBC.prctl(SET_CHILD_SUBREAPER, 0)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run does."""
    with Program(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as program:
        try:
            out, err = program.communicate(timeout=120)
        finally:
            program.kill()
    return subprocess.CompletedProcess(words, program.returncode, out, err)


@functools.cache
def server() -> str:
    """The name of the process that others are forked from. It ends with this one."""
    address, (ready, end) = _address(), os.pipe()
    environment = {**os.environ, **SINGLE, "ROOM": "." * MAX_BYTES}
    for name in ("PYTHONPATH", "MARKER"):  # of the test that happens to need it first
        environment.pop(name, None)
    os.set_inheritable(end, True)
    os.posix_spawn(sys.executable, [sys.executable, __file__, address, str(end)], environment)
    os.close(end)
    assert os.read(ready, 1)
    os.close(ready)
    return address


def _address() -> str:
    return f"programs-{os.getpid()}"


def listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0" + address)
    listener.listen()
    return listener


def nest() -> Any:
    """Let this program start others in this way: in a child, return what `serve` does there, else None."""
    listener = listening(_address())
    if not os.fork():
        LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        return serve(listener)
    listener.close()
    global server
    server = _address  # type: ignore[assignment]
    subprocess.Popen = sys.modules[HANDLER].Popen = Program  # type: ignore[misc, attr-defined]
    return None


def serve(listener: socket.socket) -> Any:
    """Fork a program for each request; return only in those, with what was asked and the standard files."""
    with listener:
        while True:
            with listener.accept()[0] as end:
                data, files, _, _ = socket.recv_fds(end, 2 * MAX_BYTES, 3)
                gone, alive = os.pipe()
                if between := os.fork():
                    os.waitpid(between, 0)
                    for file in (*files, gone, alive):
                        os.close(file)
                elif program := os.fork():
                    end.send(str(program).encode())
                    os._exit(0)
                else:
                    os.close(alive)
                    os.read(gone, 1)  # the process between is gone, and this one the child of who asked for it
                    new_session, *request = pickle.loads(data)
                    if new_session:
                        os.setsid()
                    end.send(b"it has begun")
                    return *request, files


def become(environment: dict[str, str], folder: str, namespace: str, files: list[int]) -> None:
    """Have what a new process is given."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1024)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - to the end
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    if namespace:
        enter(namespace)
    os.environ.clear()
    os.environ.update(environment)
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[47:49])
    seen = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    ctypes.memmove(begin, seen.ljust(end - begin, b"\0"), end - begin)  # in /proc/PID/environ
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder


class Helper:
    """Becomes the fork server that a program may start: forked from it at its beginning, while it has one thread."""

    def __init__(self) -> None:
        self._start = multiprocessing.util.spawnv_passfds
        self._end, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = os.fork()
        if self._process:
            multiprocessing.util.spawnv_passfds = self.start
            return
        self._end.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        data, files, _, _ = socket.recv_fds(end, 2 * MAX_BYTES, 8)
        if data:
            command, numbers, environment = pickle.loads(data)
            os.environ.update(environment)
            for file, number in zip([fcntl.fcntl(one, fcntl.F_DUPFD, 512) for one in files], numbers, strict=True):
                os.dup2(file, number)
            with contextlib.suppress(SystemExit):
                exec(command, {})
        os._exit(0)

    def start(self, path: bytes, words: list[str], numbers: list[int]) -> int:
        """In place of multiprocessing's function, which starts another interpreter."""
        if "forkserver" not in words[-1] or self._process is None:
            return self._start(path, words, numbers)
        socket.send_fds(self._end, [pickle.dumps((words[-1], numbers, dict(os.environ)))], numbers)
        process, self._process = self._process, None
        return process


def shorten_turns() -> None:
    """Of our own trainings: what a job does in turns and around them doesn't depend on their length."""
    from dpexp.measurement import built_in_trainer as own

    own.PACE = own.OVERSUBSCRIBED_PACE = dataclasses.replace(own.PACE, turn_seconds=0.005, untimed_seconds=0.001)


def customize() -> None:
    """What an interpreter does at its start, and what is done when torch and matplotlib are imported."""
    if backend := os.environ.get("MPLBACKEND"):
        sys.modules["matplotlib"].rcParams["backend"] = backend
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")
    for finder in sys.meta_path:
        for name, install in getattr(finder, "_installs", {}).items():
            install(sys.modules[name])


def run_main(words: list[str]) -> None:
    """What `python WORDS` does."""
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *LIBRARY]
    customize()
    sys.argv = words[words[0] in ("-m", "-c") :]
    if words[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path.insert(0, "")
        exec(words[1], {"__name__": "__main__"})
    else:
        runpy.run_path(words[0], run_name="__main__")


def run_and_exit(words: list[str]) -> NoReturn:
    """As an interpreter does, but without taking apart all that was imported, which takes a second."""
    status = 0
    try:
        run_main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = sys.exc_info()
        sys.excepthook(*sys.exc_info())
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    LIBC.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    for name in IMPORTS:
        importlib.import_module(name)
    shorten_turns()
    gc.collect()
    gc.freeze()  # else each program would copy all this memory
    listener = listening(sys.argv[1])
    os.write(int(sys.argv[2]), b"!")
    os.close(int(sys.argv[2]))
    asked, *given = serve(listener)
    become(*given)
    while (NESTED in os.environ or asked[:2] == ["-m", TORCHRUN]) and (request := nest()):
        asked, *given = request
        become(*given)
    exec(os.environ.pop(FIRST, ""), {})
    if "DPEXP_SCRIPT_MARK" not in os.environ and TORCHRUN not in asked:  # a script's processes are looked for
        Helper()
    run_and_exit(asked)
