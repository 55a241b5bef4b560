from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.scenarios.start import Start, measure_start
from edgesmith.artifact import Artifact, open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UsageError, VerificationError
from serve.runtime import open_generation_engine
from serve.runtime.generation import GenerationEngine
from serve.runtime.golden_generation import (
    GENERATION_FILE,
    GoldenGeneration,
    check_golden_generation,
    processor_kind,
    read_golden_generation,
    write_golden_generation,
)
from tests.bench.gguf_built import build_gguf

PROMPT = "It was the"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small model with its golden answer."""
    folder = tmp_path_factory.mktemp("gguf")
    model = build_gguf(folder / "built")
    sealed = folder / "artifact"
    sealed.mkdir()
    (sealed / "model.gguf").write_bytes(model.path.read_bytes())
    engine = open_generation_engine(model)
    write_golden_generation(sealed, engine, prompt=PROMPT, num_tokens=6)
    engine.close()
    return write_artifact(sealed, kind="gguf", step="test")


@pytest.fixture
def engine(artifact: Artifact) -> Iterator[GenerationEngine]:
    opened = open_generation_engine(artifact)
    yield opened
    opened.close()


@pytest.fixture
def changed(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact with a golden answer that may be changed."""
    (tmp_path / "golden").mkdir()
    (tmp_path / "model.gguf").symlink_to(artifact.path / "model.gguf")
    (tmp_path / GENERATION_FILE).write_bytes((artifact.path / GENERATION_FILE).read_bytes())
    return Artifact(path=tmp_path, manifest=artifact.manifest)


def change(artifact: Artifact, **values: object) -> None:
    path = artifact.path / GENERATION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def golden_of(artifact: Artifact) -> GoldenGeneration:
    golden = read_golden_generation(artifact)
    assert golden is not None
    return golden


def test_the_engine_that_answered_answers_again(artifact: Artifact, engine: GenerationEngine) -> None:
    golden = golden_of(artifact)
    assert golden.prompt_tokens == tuple(engine.tokenize(PROMPT))
    assert golden.text == "".join(chunk.text for chunk in engine.generate(PROMPT, max_tokens=6))
    assert len(golden.tokens) == 6
    assert min(golden.margins) >= 0
    check = check_golden_generation(artifact, engine)
    assert check is not None
    assert (check.passed, check.num_tokens, check.num_agreeing, check.is_same_machine) == (True, 6, 6, True)
    assert not check.reason


def test_the_same_machine_must_choose_the_same_tokens(changed: Artifact, engine: GenerationEngine) -> None:
    golden = golden_of(changed)
    tokens = list(golden.tokens)
    tokens[4] = (tokens[4] + 1) % engine.num_vocabulary
    change(changed, tokens=tokens, margins=[0.0] * 6)
    check = check_golden_generation(changed, engine)
    assert check is not None
    assert not check.passed
    assert check.num_agreeing == 4
    assert check.reason == f"token 5 of 6 is {golden.tokens[4]}, not {tokens[4]}"


def test_the_same_machine_must_write_the_same_text(changed: Artifact, engine: GenerationEngine) -> None:
    change(changed, text="other")
    check = check_golden_generation(changed, engine)
    assert check is not None
    assert not check.passed
    assert check.num_agreeing == 6
    assert check.reason.endswith("not 'other'")


@pytest.mark.parametrize(("margin", "passed"), [(0.2, True), (0.3, False)])
def test_another_machine_may_choose_otherwise_where_it_was_close(
    changed: Artifact, engine: GenerationEngine, margin: float, passed: bool
) -> None:
    golden = golden_of(changed)
    tokens = list(golden.tokens)
    tokens[5] = (tokens[5] + 1) % engine.num_vocabulary
    margins = [9.0] * 5 + [margin]
    change(changed, tokens=tokens, margins=margins, processor="aarch64 asimd", text="other", close=0.25)
    check = check_golden_generation(changed, engine)
    assert check is not None
    assert not check.is_same_machine
    assert check.passed is passed
    assert check.num_agreeing == 5
    assert check.reason


def test_a_prompt_that_is_split_otherwise_fails(changed: Artifact, engine: GenerationEngine) -> None:
    change(changed, prompt_tokens=[1, 2, 3], processor="another")
    check = check_golden_generation(changed, engine)
    assert check is not None
    assert not check.passed
    assert "split into other tokens" in check.reason


@pytest.mark.parametrize(
    "values", [{"tokens": [1]}, {"margins": []}, {"prompt": 3}, {"close": -1}, {"other": 1}, {"schema_version": 2}]
)
def test_a_damaged_golden_answer_is_refused(changed: Artifact, values: dict[str, object]) -> None:
    change(changed, **values)
    with pytest.raises(ArtifactError, match=r"generation\.json: is damaged"):
        read_golden_generation(changed)


def test_tokens_that_the_model_does_not_know_are_refused(changed: Artifact, engine: GenerationEngine) -> None:
    change(changed, tokens=[10**6] * 6)
    with pytest.raises(ArtifactError, match="tokens that its model does not know"):
        check_golden_generation(changed, engine)


def test_a_model_of_someone_else_has_none(artifact: Artifact, engine: GenerationEngine) -> None:
    bare = open_artifact(artifact.path / "model.gguf")
    assert read_golden_generation(bare) is None
    assert check_golden_generation(bare, engine) is None


def test_an_answer_of_no_tokens_is_refused(tmp_path: Path, engine: GenerationEngine) -> None:
    with pytest.raises(UsageError, match="num_tokens is 0"):
        write_golden_generation(tmp_path, engine, num_tokens=0)
    assert processor_kind()


def test_a_start_is_to_the_first_token_of_an_answer(artifact: Artifact, tmp_path: Path) -> None:
    start = measure_start(artifact.path, num_starts=1)
    assert start.artifact_digest == artifact.digest
    assert (
        start.request
        == f"a prompt of {len(golden_of(artifact).prompt_tokens)} tokens and the first token of its answer"
    )
    assert start.first_run_ms > 0
    assert start.private_bytes is not None
    assert 10_000_000 < start.private_bytes < start.peak_rss_bytes
    start.save(tmp_path)
    assert Start.load(tmp_path) == start


def test_a_start_with_another_answer_is_a_failed_verification(artifact: Artifact, tmp_path: Path) -> None:
    shutil.copytree(artifact.path, tmp_path / "other")
    change(Artifact(path=tmp_path / "other", manifest=artifact.manifest), text="other")
    write_artifact(tmp_path / "other", kind="gguf", step="test")
    with pytest.raises(VerificationError, match="differ from its golden ones"):
        measure_start(tmp_path / "other", num_starts=1)


def test_the_probe_of_a_generating_model_takes_no_arrays(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "inputs.safetensors").write_bytes(b"x")
    command = [sys.executable, "-m", "serve.runtime.probe", str(artifact.path), "--inputs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "takes no arrays" in done.stderr
    assert "Traceback" not in done.stderr
