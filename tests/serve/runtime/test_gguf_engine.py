from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgesmith.artifact import open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions, open_generation_engine
from serve.runtime.generation import Sampling
from serve.runtime.gguf_engine import LlamaEngine
from serve.runtime.llama_sampling import TokenChooser

PROMPT = "In 1849, the price rose from $3.50"
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "inhabitants": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ['a "b"\\', "é🎉"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "tags"],
}


@pytest.fixture
def engine(tiny_file: Path) -> Iterator[LlamaEngine]:
    opened = LlamaEngine(tiny_file)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Iterator[LlamaEngine]:
    opened = LlamaEngine(smollm2_file)
    yield opened
    opened.close()


def written(engine: Any, prompt: str = PROMPT, **options: Any) -> str:
    return "".join(chunk.text for chunk in engine.generate(prompt, **{"max_tokens": 24, **options}))


def test_smollm2_writes_what_torch_writes(smollm2: LlamaEngine, smollm2_folder: Path) -> None:
    torch_engine = TorchGenerationEngine(smollm2_folder)
    expected = list(torch_engine.generate(CHAT, max_tokens=10))
    found = list(smollm2.generate(CHAT, max_tokens=10))
    assert "".join(chunk.text for chunk in found) == "".join(chunk.text for chunk in expected) != ""
    assert found[-1].finish_reason == expected[-1].finish_reason == "stop"
    tokens = smollm2.tokenize(CHAT)
    assert tokens == torch_engine.tokenize(CHAT)
    assert np.abs(smollm2.logits(tokens, first=8) - torch_engine.logits(tokens, first=8)).max() < 0.01


def test_smollm2_keeps_to_a_schema(smollm2: LlamaEngine) -> None:
    value = json.loads(written(smollm2, CHAT, max_tokens=80, json_schema=SCHEMA))
    assert isinstance(value["city"], str)
    assert set(value["tags"]) <= {'a "b"\\', "é🎉"}


def test_an_artifact_and_a_bare_file_are_opened_by_one_function(tiny_file: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_file, tmp_path / "model.gguf")
    first = open_generation_engine(open_artifact(tmp_path / "model.gguf"))
    likeliest = int(first.logits(first.tokenize(PROMPT))[-1].argmax())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [likeliest]}))
    write_artifact(tmp_path, kind="gguf", step="export")
    second = open_generation_engine(open_artifact(tmp_path), EngineOptions(threads=1))
    chunks = list(second.generate(PROMPT, max_tokens=5))
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "stop")]
    assert second.num_vocabulary == 1000
    assert second.context_length == 512


def test_pieces_are_whole_characters_and_join_to_what_torch_writes(engine: LlamaEngine, tiny_folder: Path) -> None:
    for prompt in (PROMPT, "def add(a: int", "the age of wisdom 🎉"):
        expected = written(TorchGenerationEngine(tiny_folder), prompt, max_tokens=40)
        found = [chunk.text for chunk in engine.generate(prompt, max_tokens=40)]
        assert "".join(found) == expected
    assert not all(found), "no character had several tokens"


def test_a_prompt_that_starts_alike_is_read_from_where_it_differs(engine: LlamaEngine, tiny_file: Path) -> None:
    engine.logits([5])
    texts = [PROMPT, f"{PROMPT} to $12.75 within 6 weeks", f"{PROMPT} to", "the age", PROMPT]
    reused = []
    for text in texts:
        fresh = LlamaEngine(tiny_file)
        assert written(engine, text) == written(fresh, text)
        assert fresh.num_reused_tokens == 0
        fresh.close()
        reused.append(engine.num_reused_tokens)
    count = engine.count_prompt_tokens(PROMPT)
    assert reused[0] == reused[3] == 0
    assert count - 1 <= reused[1] < reused[2] + 2
    assert reused[2] >= count


def test_room_grows_with_the_text(engine: LlamaEngine) -> None:
    short = written(engine)
    long = "the age of wisdom " * 40
    assert engine.count_prompt_tokens(long) > 200
    written(engine, long, max_tokens=100)
    assert written(engine) == short


def test_the_answer_ends_before_a_stop_string_and_shows_no_part_of_it(engine: LlamaEngine) -> None:
    whole = written(engine, max_tokens=40)
    stop = whole[6:11]
    assert whole.index(stop) == 6
    chunks = list(engine.generate(PROMPT, max_tokens=40, stop=["never written", stop]))
    assert "".join(chunk.text for chunk in chunks) == whole[:6]
    assert chunks[-1].finish_reason == "stop"
    nearly = whole[6:11] + "\0"
    assert written(engine, max_tokens=40, stop=[nearly]) == whole


def test_a_seed_decides_the_draw(engine: LlamaEngine) -> None:
    def draw(seed: int) -> str:
        return written(engine, sampling=Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed))

    assert draw(1) == draw(1) != draw(2)
    greedy = written(engine)
    assert written(engine, sampling=Sampling(temperature=1.0, top_k=1)) == greedy
    assert written(engine, sampling=Sampling(temperature=0.01, top_p=1e-6)) == greedy
    assert written(engine, sampling=Sampling(repeat_penalty=5.0)) != greedy


def test_draws_follow_the_probabilities(engine: LlamaEngine) -> None:
    """1,000 tokens of as many seeds: their shares are those of the softmax, by a chi-squared test."""
    logits = engine.logits(engine.tokenize(PROMPT))[-1]
    top = np.argsort(-logits)[:4]
    powers = np.exp(logits[top].astype(np.float64) / 2.0)
    counts = dict.fromkeys(top.tolist(), 0)
    for seed in range(1000):
        sampling = Sampling(temperature=2.0, top_k=4, top_p=1.0, min_p=0.0, seed=seed)
        with TokenChooser(engine.model, sampling, None, []) as chooser:
            token = chooser.choose(logits)
        assert token is not None
        counts[token] += 1
    assert stats.chisquare(list(counts.values()), 1000 * powers / powers.sum()).pvalue > 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_follows_the_grammar(engine: LlamaEngine, seed: int) -> None:
    grammar = 'root ::= item ("," item){2,3}\nitem ::= [a-c]{2} | "é🎉" # two kinds\n'
    sampling = Sampling(temperature=3.0, top_k=0, seed=seed)
    items = written(engine, max_tokens=60, sampling=sampling, grammar=grammar).split(",")
    assert 3 <= len(items) <= 4
    assert all(item == "é🎉" or (len(item) == 2 and set(item) <= set("abc")) for item in items)
    value = json.loads(written(engine, max_tokens=200, sampling=sampling, json_schema=SCHEMA))
    assert len(re.sub("\ufffd+", "?", value["city"])) <= 20  # bytes that are no character count as one
    assert value.keys() <= SCHEMA["properties"].keys()  # type: ignore[attr-defined]


def test_logits_are_those_of_torch_from_any_position(engine: LlamaEngine, tiny_folder: Path) -> None:
    reference = TorchGenerationEngine(tiny_folder)
    tokens = reference.tokenize("It was the spring of hope, it was the winter of despair.")
    expected = reference.logits(tokens)
    assert np.abs(engine.logits(tokens) - expected).max() < 2e-3
    assert np.array_equal(engine.logits(tokens, first=5), engine.logits(tokens)[5:])
    assert engine.logits(tokens[:3]).shape == reference.logits(tokens[:3]).shape == (3, 1000)


def test_vectors_need_a_pooling_and_are_those_of_the_states(engine: LlamaEngine) -> None:
    with pytest.raises(UnsupportedError, match="does not say how"):
        engine.embed(["a"])
    vectors = engine.embed(["the age of wisdom", "hope"], pooling="mean", normalize=True)
    assert vectors.shape == (2, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    longer = engine.embed(["the age of wisdom " * 30, "hope"], pooling="mean", normalize=True)
    assert longer[1] == pytest.approx(vectors[1], abs=1e-5)
    with pytest.raises(UsageError, match="text 1 has"):
        engine.embed(["a", "the age of wisdom " * 300], pooling="last")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.generate("", max_tokens=5), "no tokens"),
        (lambda engine: engine.generate("a", max_tokens=0), "max_tokens is 0"),
        (lambda engine: engine.generate("a", max_tokens=512), "more together than the 512"),
        (lambda engine: engine.generate("a b" * 400, max_tokens=1), "more together than the 512"),
        (lambda engine: engine.generate("a\ud800", max_tokens=1), "half a character"),
        (lambda engine: engine.generate("a", max_tokens=5, stop=[""]), "none of them empty"),
        (lambda engine: engine.generate("a", max_tokens=5, stop="ab"), "a list"),
        (lambda engine: engine.generate("a", max_tokens=5, grammar='root ::= "a"', json_schema={}), "one of them"),
        (lambda engine: engine.logits([]), "first is 0"),
        (lambda engine: engine.logits([1, 1000]), "token 1000 is not in"),
        (lambda engine: engine.logits([-1]), "token -1 is not in"),
        (lambda engine: engine.logits([1] * 513), "513 tokens are more than the 512"),
        (lambda engine: engine.logits([1, 2], first=2), "first is 2"),
        (lambda engine: engine.scale_adapters([1.0]), "1 scales for 0 adapters"),
        (lambda engine: Sampling(temperature=math.nan), "temperature is nan"),
        (lambda engine: Sampling(top_p=0.0), "top_p is 0.0"),
        (lambda engine: Sampling(top_k=-1), "top_k is -1"),
        (lambda engine: Sampling(seed=1.5), "seed is 1.5"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_before_the_library_sees_it(
    engine: LlamaEngine, call: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(engine)
    assert written(engine, max_tokens=1) != ""


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= root "a" | "b"', "calls itself"),
        ('root ::= empty root "z" | "x"\nempty ::= deeper\ndeeper ::= "" | "y"', "calls itself"),
        ('root ::= "a"{5,3}', "5 to 3 times"),
        ('root ::= "a"{100000}', "100000 to 100000 times"),
        ('root ::= ("a"{500}){500}', "understood|make"),
        ('root ::= ("a"?)*', "repeats without end what may be empty"),
        ("root ::= other", "does not define: other"),
        ('top ::= "a"', "no rule 'root'"),
        ('root ::= "a', "closing"),
        ("root ::= [a-z", "closing"),
        (r'root ::= "\q"', "an escape"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "nested more than"),
        ('root ::= "a"\0', "zero"),
        ("root ::= <think>", "tokens in a grammar"),
        ("", "no rule"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
    ],
)
def test_grammars_that_the_library_hangs_or_dies_on_are_refused(
    engine: LlamaEngine, grammar: str, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        engine.generate("a", max_tokens=5, grammar=grammar)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": ".*"}, "'pattern', which a grammar cannot keep"),
        ({"type": "integer", "minimum": 5}, "minimum 5"),
        ({"oneOf": [{"type": "string"}]}, "'oneOf'"),
        ({"$ref": "https://example.com/schema"}, "only `#/"),
        ({"$ref": "#/$defs/none"}, "not there"),
        ({"$ref": "#"}, "calls itself"),
        ({"type": "array", "maxItems": 10**9}, "0 to 1000"),
        ({"type": "text"}, "has the type 'text'"),
        ({"type": "integer", "enum": [True]}, "not of the type 'integer'"),
        ({"const": math.nan}, "not JSON"),
        ([], "not an object"),
        ({"type": {}}, "has the type {}"),
        ({"type": [{}]}, "has the type {}"),
        ({"type": []}, "an empty one"),
        ({"type": "string", "format": []}, r"has the format \[\]"),
        ({"type": "object", "required": [{}]}, "a list of names"),
        ({"type": "object", "properties": {1: {}}}, "a list of names"),
        ({"type": "object", 1: 2}, "not an object"),
    ],
)
def test_schemas_that_cannot_be_kept_are_refused(engine: LlamaEngine, schema: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        engine.generate("a", max_tokens=5, json_schema=schema)


@pytest.mark.parametrize(
    "schema", [{"const": 7}, {"const": {"a": [1, "b"]}}, {"type": "boolean"}, {"type": "array", "maxItems": 0}]
)
def test_nothing_comes_after_the_last_character_of_a_schema(engine: LlamaEngine, schema: dict[str, Any]) -> None:
    sampling = Sampling(temperature=50.0, top_k=0, top_p=1.0, min_p=0.0)
    for seed in range(8):
        text = written(engine, max_tokens=60, sampling=replace(sampling, seed=seed), json_schema=schema)
        assert text == text.strip()
        json.loads(text)


def test_what_was_read_is_forgotten_on_demand(engine: LlamaEngine) -> None:
    before = written(engine)
    engine.logits(engine.tokenize(PROMPT))
    engine.free_rooms()
    assert engine._rooms() == []
    assert written(engine) == before
    assert engine.num_reused_tokens == 0
    written(engine)
    assert engine.num_reused_tokens > 0
    written(engine, sampling=Sampling(is_repeatable=True))
    assert engine.num_reused_tokens == 0


def test_a_grammar_that_no_token_follows_ends_with_an_error(engine: LlamaEngine) -> None:
    with pytest.raises(UnsupportedError, match="no token"):
        written(engine, grammar='root ::= "a" "\\U00FFFFFF"')


def test_a_context_longer_than_trained_is_refused(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match=r"num_context is 4,096, but .* 512"):
        LlamaEngine(tiny_file, EngineOptions(num_context=4096))
    short = LlamaEngine(tiny_file, EngineOptions(num_context=40))
    with pytest.raises(UsageError, match="the 40 that"):
        short.generate(PROMPT, max_tokens=40)
    assert written(short, max_tokens=5) != ""


def test_a_closed_engine_and_an_overtaken_answer_are_errors(tiny_file: Path) -> None:
    engine = LlamaEngine(tiny_file)
    first = engine.generate(PROMPT, max_tokens=9)
    next(first)
    assert written(engine) != ""
    with pytest.raises(UsageError, match="another answer was begun"):
        next(first)
    second = engine.generate(PROMPT, max_tokens=9)
    next(second)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        next(second)
    for call in (lambda: engine.generate("a", max_tokens=1), lambda: engine.logits([1]), lambda: engine.tokenize("a")):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_a_truncated_file_is_refused_by_our_reader(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_file.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="truncated"):
        LlamaEngine(path)


def test_kinds_without_an_engine_are_named(tiny_folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="kind 'checkpoint'"):
        open_generation_engine(open_artifact(tiny_folder))
