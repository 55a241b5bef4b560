"""The plan and the requests, handed to Locust's processes in memory: they may hold keys, and a file outlives a kill."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.load.plan import LoadPlan
from bench.load.target import Target

__all__ = ["JOB", "hold_job", "read_job"]

JOB = "EDGESMITH_LOAD_JOB"
"""The environment's variable with the number of the open file."""
_HEAD_BYTES = 8


@contextmanager
def hold_job(plan: LoadPlan, target: Target) -> Iterator[int]:
    """Write both into a file without a name, which is gone as soon as no process has it open; give its descriptor."""
    head = json.dumps(replace(plan, data=None, encoder=None).to_json()).encode()
    with (
        tempfile.TemporaryFile()
        if not hasattr(os, "memfd_create")
        else os.fdopen(os.memfd_create("edgesmith-load"), "w+b") as file
    ):
        file.write(len(head).to_bytes(_HEAD_BYTES, "little") + head + target.to_bytes())
        file.flush()
        yield file.fileno()


def read_job(descriptor: int) -> tuple[LoadPlan, bytes]:
    """Give the plan and the target's bytes; any number of processes may read the same file."""
    size = os.fstat(descriptor).st_size
    content = bytearray()
    while len(content) < size:
        part = os.pread(descriptor, size - len(content), len(content))
        if not part:
            raise EOFError(f"{len(content)} of {size} bytes of the plan")
        content += part
    begin = _HEAD_BYTES + int.from_bytes(content[:_HEAD_BYTES], "little")
    return LoadPlan.from_json(json.loads(content[_HEAD_BYTES:begin])), bytes(content[begin:])
