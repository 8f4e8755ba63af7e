"""The phases of a training step, by name: what workers record, and what results and figures show."""

PHASES = ("data", "compute", "wait", "communicate", "update")
DATA, COMPUTE, WAIT, COMMUNICATE, UPDATE = range(len(PHASES))

MAX_PHASE_STEPS = 256  # steps of an arm in a block whose phases are kept, at most

USEFUL = ("data", "compute", "update")  # the work that a sequential process has to do, too
