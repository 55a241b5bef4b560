"""Tests that need what is not installed are skipped, and say so."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("gguf", "llama_cpp", "torch", "transformers") if find_spec(name) is None]
NEEDS_LIBRARY = {
    "test_chat_prompt.py", "test_gguf_engine.py", "test_llama_adapters.py", "test_llama_room.py",
    "test_llama_writer.py",
}  # fmt: skip


class _SkippedModule(pytest.Module):
    """A file of tests that cannot even be imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if MISSING and module_path.name in NEEDS_LIBRARY:
        return _SkippedModule.from_parent(parent, path=module_path)
    return None
