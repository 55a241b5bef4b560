"""`python -m edgesmith` as torchrun starts it: several times, of which the first one speaks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(*arguments: str, rank: int | None = None) -> subprocess.CompletedProcess[str]:
    processes = {} if rank is None else {"RANK": str(rank), "WORLD_SIZE": "2"}
    environment = {**os.environ, **processes}
    command = [sys.executable, "-m", "edgesmith", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rank", [None, 0])
def test_the_first_process_speaks(rank: int | None) -> None:
    done = run("--version", rank=rank)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("edgesmith ")


def test_the_others_are_silent() -> None:
    done = run("--version", rank=1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_that_fails_alone_says_why() -> None:
    command = ("distill", "/no/such", "--data", "/no/data.jsonl", "--num-layers", "1", "-o", "/no/out")
    first, other = run(*command, rank=0), run(*command, rank=1)
    assert "/no/such" in first.stderr
    assert (other.returncode, other.stdout, other.stderr) == (first.returncode, "", first.stderr)


def test_only_training_is_shared_among_processes() -> None:
    done = run("prune", "/no/such", "-o", "/no/out", rank=0)
    assert done.returncode == 2
    assert "each would do all of prune" in done.stderr
