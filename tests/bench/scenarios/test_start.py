from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.scenarios.start import START, Start
from edgesmith.errors import ArtifactError
from tests.bench.evidence_built import start


def test_a_start_measured_before_private_memory_was_is_still_read(tmp_path: Path) -> None:
    earlier = start(num_starts=2)
    earlier.save(tmp_path)
    value = json.loads((tmp_path / START).read_text())
    del value["private_bytes"], value["request"]
    for process in value["processes"]:
        del process["private_bytes"]
    (tmp_path / START).write_text(json.dumps(value))
    assert Start.load(tmp_path) == earlier
    assert earlier.private_bytes is None


def test_private_memory_is_that_of_the_process_that_took_most(tmp_path: Path) -> None:
    few = start(num_starts=3)
    taken = [replace(process, private_bytes=size) for process, size in zip(few.processes, (5, 9, None), strict=True)]
    found = replace(few, processes=tuple(taken))
    assert found.private_bytes == 9
    found.save(tmp_path)
    assert Start.load(tmp_path) == found
    value = json.loads((tmp_path / START).read_text())
    value["processes"][0]["private_bytes"] = -1
    (tmp_path / START).write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=START):
        Start.load(tmp_path)
