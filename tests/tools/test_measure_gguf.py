"""What the measuring program says of too little data, and what it shows of earlier runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bench.language.evaluation import LanguageEvaluation

TOOLS = Path(__file__).parents[2] / "tools"
MISSING = [name for name in ("gguf", "llama_cpp", "onnxruntime_genai", "torch") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """The program, imported as it imports its neighbour."""
    path = list(sys.path)
    sys.path.insert(0, str(TOOLS))
    import measure_gguf

    yield measure_gguf
    sys.path[:] = path


def evaluation(num_windows: int, kld: float) -> LanguageEvaluation:
    rng = np.random.default_rng(0)
    shape = (num_windows, 63)
    nll = rng.exponential(3.0, shape).astype(np.float32)
    return LanguageEvaluation(
        engine="engine",
        artifact_digest="sha256:one",
        windows_digest="sha256:windows",
        window_length=128,
        bos=None,
        num_vocabulary=1000,
        num_excluded=0,
        nll=nll,
        reference_nll=nll,
        kld=(kld * rng.uniform(0.8, 1.2, shape)).astype(np.float32),
        same_top=rng.random(shape) >= 0.1,
        reference_engine="torch",
        reference_artifact="sha256:torch",
        reference_digest="sha256:reference",
    )


@pytest.mark.parametrize(("num_windows", "outcomes"), [(12, ("PASS", "FAIL")), (7, ("INCONCLUSIVE", "INCONCLUSIVE"))])
def test_a_few_windows_decide_nothing(tool: ModuleType, num_windows: int, outcomes: tuple[str, str]) -> None:
    low, high = evaluation(num_windows, 0.01), evaluation(num_windows, 0.02)
    assert (tool.gain("x", low, high, 0.9).outcome, tool.gain("x", high, low, 0.9).outcome) == outcomes
    kld = low.mean_kld()
    for border, outcome in zip((0.015, 0.005), outcomes, strict=True):
        assert tool.limit("x", kld.value, kld.lower, kld.upper, border).outcome == outcome


@pytest.mark.parametrize(
    ("typical", "spread", "outcome"),
    [(1.0, 0.01, "PASS"), (0.9, 0.01, "FAIL"), (0.98, 0.05, "INCONCLUSIVE"), (0.96, 0.05, "INCONCLUSIVE")],
)
def test_pairs_decide_when_their_bounds_do(tool: ModuleType, typical: float, spread: float, outcome: str) -> None:
    ratios = (typical * (1 + spread * np.linspace(-1, 1, 12))).tolist()
    assert tool.pairs("x", ratios, 0.97).outcome == outcome


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [(["PASS"], 0), ([], 0), (["PASS", "INCONCLUSIVE"], 3), (["INCONCLUSIVE", "FAIL", "PASS"], 1)],
)
def test_the_exit_code_tells_what_is_open_from_what_is_broken(tool: ModuleType, outcomes: list[str], code: int) -> None:
    assert tool.exit_code([tool.Check("x", "y", outcome) for outcome in outcomes]) == code


def test_figures_of_other_code_or_checkpoints_are_not_shown(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shop:
        work = tmp_path

        def windows(self, length: int, count: int, *, is_held_out: bool) -> None:
            del length, count, is_held_out

    arguments = argparse.Namespace(length=8, windows=8)
    codes = [tool.Session(Shop(), arguments).code for _ in range(2)]
    monkeypatch.setattr(tool, "code_digest", lambda module: f"{module} changed")
    codes.append(tool.Session(Shop(), arguments).code)
    assert codes[0] == codes[1] != codes[2]

    keys = set()
    for content in ("one", "two", "one"):
        (tmp_path / "model.safetensors").write_text(content)
        keys.add(tool.checkpoint_key(tmp_path))
    assert len(keys) == 2
