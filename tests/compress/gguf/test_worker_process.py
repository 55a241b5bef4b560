"""What the store must see of a quantization is found by following names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from compress.gguf import worker_process
from edgesmith.store import _closure

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("module", "started"),
    [
        ("edgesmith.stages.gguf_quantize", "compress.gguf.quantize_worker"),
        ("edgesmith.stages.genai_export", "export.genai.builder_process"),
        ("edgesmith.stages.bench", "serve.runtime.probe"),
    ],
)
def test_the_code_of_a_process_of_its_own_is_part_of_what_a_step_depends_on(module: str, started: str) -> None:
    assert started in _closure(module)


def test_the_worker_that_is_named_is_the_one_that_is_started() -> None:
    assert ROOT.joinpath(*worker_process._WORKER_MODULE.split(".")).with_suffix(".py") == worker_process._WORKER
    ast.parse(worker_process._WORKER.read_bytes())
