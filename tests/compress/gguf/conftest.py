"""Small GGUF models of real architectures, and the importance matrices that fit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from compress.gguf.quantize import GgufQuantizer

MISSING = [name for name in ("gguf", "llama_cpp") if find_spec(name) is None]


class _SkippedModule(pytest.Module):
    """A file of tests that cannot even be imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _SkippedModule.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def fitting_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in f32 whose columns are multiples of 256."""
    from tests.compress.gguf.models_built import write_llama

    return write_llama(tmp_path_factory.mktemp("models") / "fitting.gguf")


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a Llama of given sizes."""
    from tests.compress.gguf.models_built import write_llama

    return lambda **sizes: write_llama(tmp_path / "model.gguf", **sizes)


@pytest.fixture(scope="session")
def quantizer() -> Iterator[GgufQuantizer]:
    """One process for many files."""
    from compress.gguf.quantize import GgufQuantizer

    with GgufQuantizer() as opened:
        yield opened
