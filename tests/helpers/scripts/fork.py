"""Runs a script in so many ranks, forked from this process: `fork.py RANKS PORT SCRIPT ARGUMENT ...`."""

import os
import runpy
import sys

ranks, port, *sys.argv = sys.argv[1:]
os.environ |= {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
children = []
for rank in range(1, int(ranks)):
    os.environ["RANK"] = str(rank)
    if not (child := os.fork()):
        break
    children.append(child)
else:
    os.environ["RANK"] = "0"
runpy.run_path(sys.argv[0], run_name="__main__")
for child in children:
    os.waitpid(child, 0)
