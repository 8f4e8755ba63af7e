"""The sweep that the README shows: measured anew into outputs/example, and what it prints kept in the README."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.setup import out

ROOT = Path(__file__).parent.parent
FOLDER = "outputs/example"
SHOWN_SIZE = 40_000  # samples of the rows that are shown
COLUMNS = 113  # of the terminal: the README shows what fits
SWEEP = ["-m", "workers=1,2,4", "data.size=5000,10000,20000,40000"]


def run() -> None:
    """Measure, and replace the README's block, whose words before the figures stay."""
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "dpexp", *SWEEP, f"hydra.sweep.dir={FOLDER}"]
    environment = os.environ | {"COLUMNS": str(COLUMNS)}
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    answer = [line for line in printed.splitlines() if not line.startswith("job ")]  # without the progress
    headline, table, *_ = "\n".join(answer).split("\n\n")
    configuration, heads, rule, *rows = table.splitlines()
    largest = [row for row in rows if f" {SHOWN_SIZE:,} " in row]
    shown = [line.rstrip() for line in (headline, "", configuration, heads, rule, *largest)]
    begin, end = "<!-- example -->\n", "<!-- end -->"
    text = (ROOT / "README.md").read_text()
    start = text.index(begin) + len(begin)
    block = "```\n" + "\n".join(shown).strip() + "\n```\n"
    (ROOT / "README.md").write_text(text[:start] + block + text[text.index(end, start) :])
    out.print("\n".join(shown))
