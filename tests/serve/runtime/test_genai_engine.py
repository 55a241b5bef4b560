"""The engine of onnxruntime-genai: as torch generates, streamed, bounded; hostile folders never reach native code."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.artifact import Artifact, write_artifact
from edgesmith.errors import ArtifactError, EdgesmithError, UnsupportedError, UsageError
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions, open_generation_engine
from serve.runtime.genai_engine import GenaiEngine
from serve.runtime.genai_folder import read_genai_folder
from serve.runtime.generation import Sampling
from tests.export.genai.built import built_llama, needs_genai, tiny_llama

pytestmark = needs_genai
PROMPT = "It was the best of times, it was the"


def sealed(folder: Path) -> Artifact:
    (folder / "manifest.json").unlink(missing_ok=True)
    return write_artifact(folder, kind="genai", step="export")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(built_llama("fp32").folder, tmp_path / "model"))


@pytest.fixture
def engine(folder: Path) -> Iterator[GenaiEngine]:
    opened = open_generation_engine(sealed(folder), EngineOptions(threads=1))
    assert isinstance(opened, GenaiEngine)
    yield opened
    opened.close()


@pytest.fixture
def changed(folder: Path) -> Callable[..., Artifact]:
    """The folder's configuration, changed at a path such as `model.decoder.filename`."""

    def change(where: str, value: Any) -> Artifact:
        path = folder / "genai_config.json"
        config = json.loads(path.read_text())
        *parents, last = where.split(".")
        part = config
        for key in parents:
            part = part[key]
        if value is ...:
            del part[last]
        else:
            part[last] = value
        path.write_text(json.dumps(config))
        return sealed(folder)

    return change


def text_of(engine: Any, **settings: Any) -> str:
    return "".join(chunk.text for chunk in engine.generate(PROMPT, max_tokens=24, **settings))


def test_it_generates_what_torch_generates(engine: GenaiEngine) -> None:
    torch_engine = TorchGenerationEngine(tiny_llama())
    assert engine.tokenize(PROMPT) == torch_engine.tokenize(PROMPT)
    sampling = Sampling(temperature=0.9, seed=7, repeat_penalty=1.2)
    assert text_of(engine) == text_of(torch_engine) != ""
    assert text_of(engine, sampling=sampling) == text_of(torch_engine, sampling=sampling) != text_of(engine)


def test_logits_of_all_positions_come_from_one_pass(engine: GenaiEngine) -> None:
    tokens = engine.tokenize(PROMPT)
    whole = engine.logits(tokens)
    assert whole.shape == (len(tokens), engine.num_vocabulary)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(engine.logits(tokens, first=3), whole[3:])
    np.testing.assert_allclose(engine.logits(tokens[:5]), whole[:5], atol=1e-4)
    np.testing.assert_allclose(whole, TorchGenerationEngine(tiny_llama()).logits(tokens), atol=2e-3)


@pytest.mark.parametrize("tokens", [[], [-1], [1000], [10**9], [1] * 513])
def test_tokens_out_of_range_never_reach_the_runtime(engine: GenaiEngine, tokens: list[int]) -> None:
    with pytest.raises(UsageError):
        engine.logits(tokens)


def test_the_whole_context_can_be_read_and_no_more(folder: Path) -> None:
    opened = open_generation_engine(sealed(folder), EngineOptions(threads=1, num_context=40, num_batch=8))
    assert opened.context_length == 40
    assert opened.logits([5] * 40).shape[0] == 40
    num = opened.count_prompt_tokens(PROMPT)
    assert sum(chunk.num_tokens for chunk in opened.generate(PROMPT, max_tokens=40 - num)) <= 40 - num
    with pytest.raises(UsageError, match="40"):
        opened.generate(PROMPT, max_tokens=41 - num)


def test_it_stops_before_a_stop_string(engine: GenaiEngine) -> None:
    whole = text_of(engine)
    stop = whole[5:8]
    chunks = list(engine.generate(PROMPT, max_tokens=24, stop=[stop]))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert list(engine.generate(PROMPT, max_tokens=3))[-1].finish_reason == "length"


def test_a_prompt_in_pieces_gives_the_same_text(folder: Path, engine: GenaiEngine) -> None:
    pieces = open_generation_engine(sealed(folder), EngineOptions(threads=2, num_batch=4))
    assert text_of(pieces) == text_of(engine)


def test_a_schema_is_followed_and_a_grammar_is_refused(engine: GenaiEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
        "required": ["yes", "kind"],
        "additionalProperties": False,
    }
    chunks = list(engine.generate(PROMPT, max_tokens=60, json_schema=schema))
    answer = json.loads("".join(chunk.text for chunk in chunks))
    assert isinstance(answer["yes"], bool)
    assert answer["kind"] in ("a", "b")
    assert chunks[-1].finish_reason == "stop"
    with pytest.raises(UnsupportedError, match=r"llama\.cpp"):
        engine.generate(PROMPT, max_tokens=3, grammar='root ::= "a"')
    for sampling in (Sampling(repeat_penalty=1.2), Sampling(temperature=1.0, min_p=0.1)):
        with pytest.raises(UnsupportedError, match=r"neither repeat_penalty nor min_p\n.*Set repeat_penalty to 1"):
            engine.generate(PROMPT, max_tokens=3, json_schema=schema, sampling=sampling)
    with pytest.raises(UnsupportedError, match="schema"):
        next(engine.generate(PROMPT, max_tokens=3, json_schema={"type": "nothing"}))


def test_an_answer_that_is_cut_is_not_complete(engine: GenaiEngine) -> None:
    schema = {"const": "abcdefgh"}
    whole = list(engine.generate(PROMPT, max_tokens=60, json_schema=schema))
    assert whole[-1].finish_reason == "stop"
    cut = list(engine.generate(PROMPT, max_tokens=4, json_schema=schema))
    assert len(cut) == 4 < len(whole)
    assert [chunk.finish_reason for chunk in cut] == [None, None, None, "length"]


def test_a_schema_is_followed_by_what_is_drawn(engine: GenaiEngine) -> None:
    schema = {"enum": ["ab", "cd", "ef", 12, 34, 56, True, None]}

    def drawn(**options: Any) -> str:
        sampling = Sampling(**{"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options})
        return text_of(engine, sampling=sampling, json_schema=schema)

    seeds = [*range(20), 2**31 - 1, 2**32 - 2]
    found = [drawn(seed=seed) for seed in seeds]
    assert len({*found}) > 3
    assert all(json.loads(text) in schema["enum"] for text in found)
    assert found == [drawn(seed=seed) for seed in seeds]
    assert drawn(top_k=1) == drawn(temperature=0.01) == drawn(temperature=0)


def test_a_closed_engine_says_so(engine: GenaiEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.logits([1])
    with pytest.raises(UsageError, match="closed"):
        engine.generate(PROMPT, max_tokens=1)


def test_adapters_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="adapter"):
        open_generation_engine(sealed(folder), EngineOptions(adapters=((tmp_path, 1.0),)))


def test_opening_changes_no_file(folder: Path) -> None:
    artifact = sealed(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_generation_engine(artifact, EngineOptions(threads=2)).close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("model.decoder.filename", "/etc/passwd"),
        ("model.decoder.filename", "../model.onnx"),
        ("model.decoder.filename", "sub/model.onnx"),
        ("model.decoder.filename", "model.onnx\0.onnx"),
        ("model.decoder.filename", 3),
        ("model.decoder.session_options.custom_ops_library", "evil.so"),
        ("model.decoder.session_options.config_entries", {"session.x": "1"}),
        ("model.decoder.session_options.enable_profiling", "/tmp/trace"),
        ("model.decoder.session_options.provider_options", [{"cuda": {}}]),
        ("model.decoder.session_options.provider_options", [{"evil": {"library_path": "evil.so"}}]),
        ("model.decoder.run_options", {}),
        ("model.decoder.pipeline", [{"a": {"filename": "/x.onnx"}}]),
        ("model.decoder.num_hidden_layers", 10**9),
        ("model.decoder.num_hidden_layers", -1),
        ("model.decoder.num_hidden_layers", 4),
        ("model.decoder.num_hidden_layers", True),
        ("model.decoder.num_key_value_heads", 1),
        ("model.decoder.inputs.input_ids", "no_such"),
        ("model.decoder.inputs.past_key_names", "%s%s%s%n"),
        ("model.decoder.inputs.past_key_names", "past_key_values.%d.%d.key"),
        ("model.decoder", []),
        ("model.decoder", ...),
        ("model.encoder", {"filename": "model.onnx"}),
        ("model.vision", {"filename": "model.onnx"}),
        ("model.type", "whisper"),
        ("model.type", ...),
        ("model.vocab_size", 2000),
        ("model.vocab_size", 1e3),
        ("model.context_length", 0),
        ("model.context_length", 1 << 40),
        ("model.eos_token_id", []),
        ("model.eos_token_id", "2"),
        ("model.eos_token_id", ...),
        ("search.temperature", "hot"),
        ("search.unknown", 1),
        ("engine", {}),
    ],
)
def test_a_hostile_configuration_is_refused(changed: Callable[..., Artifact], where: str, value: Any) -> None:
    with pytest.raises((ArtifactError, UnsupportedError)):
        read_genai_folder(changed(where, value))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": {}, "model": {}}', b"{}", b" " * (2 << 20), b"NaN"],
)
def test_a_damaged_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / "genai_config.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_genai_folder(sealed(folder))


@pytest.mark.parametrize("name", ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        open_generation_engine(sealed(folder), EngineOptions())


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused(folder: Path, name: str, keep: float) -> None:
    path = folder / name
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(EdgesmithError):
        open_generation_engine(sealed(folder), EngineOptions())


def test_weights_behind_a_link_are_refused(folder: Path, tmp_path: Path) -> None:
    artifact = sealed(folder)
    (folder / "model.onnx.data").rename(tmp_path / "elsewhere")
    (folder / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="link"):
        read_genai_folder(copy.copy(artifact))


def test_the_engine_needs_no_torch_and_sends_nothing_home() -> None:
    code = (
        "import sys, os; import serve.runtime.genai_engine as e; e.load_library();"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1';"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnx_ir') if name in sys.modules])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
