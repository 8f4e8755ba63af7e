"""All processes that a command has started, found by an inherited environment variable.

Also a program: `python process_tree.py MARK` waits until its standard input is closed, which happens when the process
that started it dies, and then ends all processes with the mark, even stopped ones.
"""

import contextlib
import os
import signal
import sys
import time

MARK_VARIABLE = "DPEXP_SCRIPT_MARK"
GRACE_SECONDS, POLL_SECONDS = 1.0, 0.01


class ProcessTree:
    """All processes whose `DPEXP_SCRIPT_MARK` begins with `mark`, and all processes started by them."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self._others: set[int] = {os.getpid()}  # processes without the mark
        self.processes: set[int] = set()

    def refresh(self) -> None:
        """Look for the processes that are alive."""
        marked: set[int] = set()
        alive = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - many times a second
        self._others &= alive  # process ids are reused
        for process in alive:
            if process in self._others or not (fields := _fields(process)):
                continue
            state, parent = fields[0], int(fields[1])
            if process in self.processes or parent in self.processes or parent in marked or self._is_marked(process):
                if state not in "ZX":
                    marked.add(process)
            else:
                self._others.add(process)
        self.processes = marked

    def send(self, number: int) -> None:
        """Send a signal to the processes found by `refresh`."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of the processes found by `refresh`, and of their children that have ended."""
        ticks = [sum(map(int, _fields(process)[11:15])) for process in self.processes]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    def ask_to_end(self) -> None:
        """Send SIGTERM to all processes, and continue those that are stopped."""
        self.refresh()
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)

    def end(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """End all processes: SIGTERM, then after `grace_seconds` SIGKILL, until none is left."""
        self._others = {os.getpid()}
        self.ask_to_end()
        deadline = time.monotonic() + grace_seconds
        while self.processes:
            time.sleep(POLL_SECONDS)
            self.refresh()
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)

    def _is_marked(self, process: int) -> bool:
        beginning = f"{MARK_VARIABLE}={self.mark}".encode()
        try:
            with open(f"/proc/{process}/environ", "rb") as file:  # noqa: PTH123
                return any(entry.startswith(beginning) for entry in file.read().split(b"\0"))
        except OSError:  # another user's, or it has ended
            return False


def _fields(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (the state) on; [] if the process is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    ProcessTree(sys.argv[1]).end(grace_seconds=0)
