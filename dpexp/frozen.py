"""Imported last by the fork server: takes what it has imported out of garbage collection's sight.

A collection writes to every object that it looks at, which would give each worker its own copy of the server's
memory (some 150 MiB), and would stop a training now and then to look at objects that never die.
"""

import gc

gc.collect()
gc.freeze()
