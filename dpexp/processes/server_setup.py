"""Imported last by the fork server: hides what it imported from garbage collection, and lets it exit at once.

A garbage collection writes to every object that it visits. Without this, each worker would get its own copy of the
server's memory (some 150 MiB), and a training would stop now and then to visit objects that are never freed. A normal
exit would take more than a second, during which workers that only the kernel can end would live on.
"""

import atexit
import gc
import os

server = os.getpid()


def _exit_at_once() -> None:
    if os.getpid() == server:  # and not in a worker
        os._exit(0)


atexit.register(_exit_at_once)
gc.collect()
gc.freeze()
