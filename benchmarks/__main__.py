"""Everything that the README claims about speed, side by side, in one run: python -m benchmarks."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from benchmarks import (
    costs,
    ddp_exchange,
    decisions,
    delays,
    endurance,
    example,
    exchange,
    exchange_faults,
    hosts,
    natural,
    notebook,
    scripts,
    training,
    truth,
)
from benchmarks.setup import out
from dpexp.machine import environment

HERE = Path(__file__).parent
PARTS = {
    "truth": lambda rounds: truth.run(rounds),
    "natural": lambda rounds: natural.run(rounds),
    "decisions": lambda rounds: decisions.run(rounds),
    "hosts": lambda rounds: hosts.run(rounds, HERE),
    "scripts": lambda rounds: scripts.run(rounds),
    "delays": lambda rounds: delays.run(rounds),
    "training": lambda rounds: training.run(rounds),
    "exchange": lambda rounds: exchange.run(rounds, HERE),
    "ddp": lambda rounds: ddp_exchange.run(rounds),
    "faults": lambda rounds: exchange_faults.run(),
    "costs": lambda rounds: costs.run(rounds, HERE),
    "endurance": lambda rounds: endurance.run(),
    "notebook": lambda rounds: notebook.run(rounds),
    "example": lambda rounds: example.run(),
}


def main() -> None:
    """Run the chosen parts; with --write, put what each prints into its place in benchmarks/README.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = [name for name in PARTS if name != "example"]  # which rewrites files of the project
    parser.add_argument("parts", nargs="*", default=default, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="kept rounds, after one that is discarded")
    parser.add_argument("--write", action="store_true", help="keep the output in benchmarks/README.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: no such part; choose from {', '.join(PARTS)}")
    out.record = arguments.write
    for name in arguments.parts:
        today = datetime.datetime.now(datetime.timezone.utc).date()
        out.print(f"{today}: {environment.current_environment().machine}\n")
        PARTS[name](arguments.rounds)
        out.print()
        if arguments.write and name != "example":  # which writes into the project's README
            _write(name, out.export_text())


def _write(part: str, printed: str) -> None:
    """Replace the part's block of output in the README."""
    begin, end = f"<!-- {part} -->\n```\n", "```\n<!-- end -->"
    text = (HERE / "README.md").read_text()
    start = text.index(begin) + len(begin)
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    (HERE / "README.md").write_text(text[:start] + lines + "\n" + text[text.index(end, start) :])


if __name__ == "__main__":
    main()
