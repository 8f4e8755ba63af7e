"""Imported last by the fork server: what it imported is kept out of garbage collection's sight, and it ends at once.

A collection writes to every object that it looks at, which would give each worker its own copy of the server's
memory (some 150 MiB), and would stop a training now and then to look at objects that never die. To take all of them
apart in the end takes the server more than a second, in which workers that only the kernel can end would live on.
"""

import atexit
import gc
import os

_server = os.getpid()


def _end_at_once() -> None:
    if os.getpid() == _server:  # and not in a worker
        os._exit(0)


atexit.register(_end_at_once)
gc.collect()
gc.freeze()
