"""What one part of the measurement found: a table and limits; and how commands are run for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Part:
    """A table, and what must be reached."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    limits: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def limit(self, what: str, found: str, is_kept: bool | None) -> None:
        """Note a limit; None where the evidence is too little."""
        outcome = "INCONCLUSIVE" if is_kept is None else "PASS" if is_kept else "FAIL"
        self.limits.append({"what": what, "found": found, "outcome": outcome})

    def markdown(self) -> str:
        """The part as text."""
        lines = [f"\n### {self.title}\n", _row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row(row) for row in self.rows] + [""]
        lines += [f"- {one['outcome']}: {one['what']}: {one['found']}" for one in self.limits]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def edgesmith(*arguments: str | Path, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a command with `--json`, its progress on the screen; return what it printed."""
    command = [sys.executable, "-m", "edgesmith", *map(str, arguments), "--json"]
    print("$ edgesmith", *map(str, arguments), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"edgesmith {arguments[0]} ended with {done.returncode}")
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def script(path: str) -> None:
    """Run a script of the examples."""
    subprocess.run([sys.executable, str(ROOT / path)], check=True, stdout=sys.stderr)
