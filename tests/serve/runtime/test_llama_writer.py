"""Several texts at a time on one llama.cpp context."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from edgesmith.errors import EdgesmithError, UnsupportedError, UsageError
from export.gguf.to_gguf import to_gguf
from serve.runtime.generation import Sampling, TextChunk
from serve.runtime.gguf_engine import LlamaEngine
from serve.runtime.llama_writer import PROMPT_TOKENS_ALONE, PROMPT_TOKENS_BESIDE, LlamaText, LlamaWriter
from serve.runtime.text_writer import EngineWriter, TextRequest
from tests.export.gguf.conftest import TINY, save_model, save_tokenizer
from tests.serve.mamba_built import write_mamba

PROMPTS = (
    "In 1849, the price rose from $3.50",
    "It was the best of times",
    "def add(a: int, b: int) -> int:",
    "It was the best of wisdom, it was",
    "the season of Light",
)
LONG = "it was the age of wisdom, " * 40
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def opened(tiny_file: Path) -> Iterator[Callable[..., LlamaWriter]]:
    writers: list[LlamaWriter] = []

    def make(path: Path = tiny_file, **options: Any) -> LlamaWriter:
        writers.append(LlamaWriter(LlamaEngine(path), **{"num_slots": 4, **options}))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


@pytest.fixture
def engine(tiny_file: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(tiny_file)
    yield made
    made.close()


def request(prompt: str = PROMPTS[0], **options: Any) -> TextRequest:
    return TextRequest(prompt=prompt, **{"max_tokens": 24, **options})


def begun(writer: Any, *requests: TextRequest) -> list[Any]:
    texts = [writer.prepare(one) for one in requests]
    assert all(writer.begin(text) for text in texts)
    return texts


def finish(writer: Any, texts: Sequence[Any]) -> list[str]:
    """Step until all are over; what each wrote, or why it did not."""
    written, over = dict.fromkeys(texts, ""), set()
    for _ in range(2000):
        for text, result in writer.step():
            if isinstance(result, EdgesmithError):
                written[text] = type(result).__name__
            else:
                written[text] += result.text
            if isinstance(result, EdgesmithError) or result.finish_reason is not None:
                over.add(text)
        if len(over) == len(written):
            return [written[text] for text in texts]
    raise AssertionError("it does not end")


def alone(engine: LlamaEngine, asked: TextRequest) -> str:
    chunks = engine.generate(
        asked.prompt, max_tokens=asked.max_tokens, sampling=asked.sampling, stop=asked.stop, grammar=asked.grammar,
        json_schema=asked.json_schema,
    )  # fmt: skip
    return "".join(chunk.text for chunk in chunks)


def test_texts_written_together_are_those_written_alone(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened(num_slots=5)
    asked = [
        request(PROMPTS[0]),
        request(PROMPTS[1], sampling=Sampling(temperature=0.8, seed=3)),
        request(PROMPTS[2], json_schema=SCHEMA, max_tokens=40),
        request(PROMPTS[3], sampling=Sampling(repeat_penalty=1.3)),
        request(PROMPTS[4], stop=["a", "e"], max_tokens=60),
    ]
    found = finish(writer, begun(writer, *asked))
    assert found == [alone(engine, one) for one in asked]
    assert isinstance(json.loads(found[2])["n"], int)


def test_a_text_joins_and_leaves_while_others_are_written(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened(num_slots=2)
    first, second = begun(writer, request(max_tokens=40), request(PROMPTS[1], max_tokens=6))
    third = writer.prepare(request(PROMPTS[2]))
    assert not writer.begin(third)
    written = {first: "", second: "", third: ""}
    has_begun = False
    for _ in range(60):
        for text, chunk in writer.step():
            assert isinstance(chunk, TextChunk)
            written[text] += chunk.text
        has_begun = has_begun or writer.begin(third)
    assert list(written.values()) == [alone(engine, text.request) for text in (first, second, third)]


def test_a_long_prompt_does_not_hold_up_what_is_being_written(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_tokens=1024)
    (short,) = begun(writer, request(max_tokens=60))
    writer.step()
    (long,) = begun(writer, request(LONG, max_tokens=1))
    num_steps = -(-long.num_prompt_tokens // PROMPT_TOKENS_BESIDE)
    assert num_steps > 4
    for step in range(num_steps):
        assert {text for text, _ in writer.step()} == ({short, long} if step == num_steps - 1 else {short})


def test_prompts_that_are_read_together_share_a_step(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_tokens=1024)
    long, short = begun(writer, request(LONG, max_tokens=1), request(PROMPTS[1], max_tokens=1))
    assert long.num_prompt_tokens > 256
    assert [text for text, _ in writer.step()] == [short]
    assert long.num_read + short.num_prompt_tokens == 256


def test_what_texts_begin_with_alike_is_read_once(opened: Callable[..., LlamaWriter], engine: LlamaEngine) -> None:
    writer = opened(num_tokens=1200)
    system = LONG[:400]
    (first,) = begun(writer, request(system + PROMPTS[0], max_tokens=80))
    (_, chunk), *_ = writer.step()
    assert isinstance(chunk, TextChunk)
    same, other = begun(writer, request(system + PROMPTS[1]), request(PROMPTS[4]))
    shared = len(engine.tokenize(system)) - 3  # its last token may join with what follows
    assert first.num_reused_tokens == 0
    assert same.num_reused_tokens >= shared  # of a text that is still being written
    assert other.num_reused_tokens <= 2
    rest, *others = finish(writer, [first, same, other])
    assert [chunk.text + rest, *others] == [alone(engine, text.request) for text in (first, same, other)]
    (again,) = begun(writer, request(system + PROMPTS[1] + " and so"))
    assert again.num_reused_tokens >= same.num_prompt_tokens - 2  # of one that is over
    assert finish(writer, [again]) == [alone(engine, again.request)]


@pytest.mark.parametrize("num_slots", [1, 4])
def test_a_repeatable_text_is_read_in_equal_parts_into_an_empty_room(
    opened: Callable[..., LlamaWriter], num_slots: int
) -> None:
    writer = opened(num_tokens=1200, num_slots=num_slots)
    prompt = LONG[:600]
    found = []
    for before in ("", prompt[:200], prompt, prompt + " so"):
        if before:
            finish(writer, begun(writer, request(before, max_tokens=3)))
        (text,) = begun(writer, request(prompt, sampling=Sampling(temperature=1.0, seed=5, is_repeatable=True)))
        assert text.num_reused_tokens == 0
        assert writer._slots is not None
        assert not any(writer._slots.held)
        parts: list[int] = []
        first_logits: bytes | None = None
        while first_logits is None:
            writer.step()
            parts.append(text.num_read - sum(parts))
            if text.num_read == text.num_prompt_tokens:
                first_logits = writer._slots.logits(text.slot).tobytes()
        found.append((parts, first_logits, *finish(writer, [text])))
    assert found == [found[0]] * 4  # to the last bit
    assert {*found[0][0][:-1]} <= {PROMPT_TOKENS_BESIDE if num_slots > 1 else PROMPT_TOKENS_ALONE}


def test_a_repeatable_prompt_keeps_its_parts_beside_others(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_tokens=2000)
    repeatable = Sampling(is_repeatable=True)
    (first,) = begun(writer, request(max_tokens=60))
    writer.step()
    one, other, plain = begun(
        writer, request(LONG[:600], max_tokens=9, sampling=repeatable), request(LONG[300:900], max_tokens=9,
        sampling=repeatable), request(LONG[100:700], max_tokens=9),
    )  # fmt: skip
    assert (one.num_read, other.num_read) == (0, 0)
    already = plain.num_read
    writer.step()
    assert (one.num_read, other.num_read, plain.num_read - already) == (PROMPT_TOKENS_BESIDE, 0, PROMPT_TOKENS_BESIDE)
    assert "" not in finish(writer, [first, one, other, plain])


def test_a_conversation_goes_on_after_another_one_that_began_alike(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_tokens=1200, num_slots=3)
    system = LONG[:400]
    prompts = [system + " one two three", system + " four five six"]
    for prompt in prompts * 2:
        texts = begun(writer, request(prompt, max_tokens=4))
        finish(writer, texts)
    assert texts[0].num_reused_tokens == texts[0].num_prompt_tokens - 1


def test_a_text_waits_until_its_longest_answer_has_room(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened(num_tokens=256, num_slots=3)
    first = begun(writer, request(max_tokens=180))[0]
    second = writer.prepare(request(PROMPTS[1], max_tokens=100))
    assert not writer.begin(second)
    writer.step()
    writer.drop(first)
    assert writer.begin(second)
    assert finish(writer, [second]) == [alone(engine, second.request)]
    for index in range(6):  # what is over makes room: all of them together are more than there is
        texts = begun(writer, request(f"{index} {PROMPTS[index % 5]}", max_tokens=110))
        assert finish(writer, texts) == [alone(engine, texts[0].request)]


def test_what_can_never_fit_is_refused_with_the_numbers(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_tokens=256)
    assert writer.context_length == 256
    with pytest.raises(UsageError, match=r"prompt has \d+ tokens and the answer 250 .* the 256 that"):
        writer.prepare(request(max_tokens=250))
    with pytest.raises(UsageError, match="1,000,000 characters"):
        writer.prepare(request("a" * 1_000_000))
    assert opened(num_tokens=4096).context_length == 512


def test_the_room_is_that_of_the_longest_text_or_a_thousand_tokens_a_slot(opened: Callable[..., LlamaWriter]) -> None:
    writer = opened(num_slots=4)
    assert (writer.total_tokens, writer.context_length) == (2048, 512)
    assert writer.size_bytes == 2048 * 3 * 2 * (16 + 16) * 2


def test_after_a_failure_of_the_library_the_writer_begins_anew(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened()
    begun(writer, request(), request(PROMPTS[1]))
    writer.step()
    assert writer._slots is not None
    writer._slots.close()
    with pytest.raises(UsageError, match="closed"):
        writer.step()
    writer.renew()
    texts = begun(writer, *[request(prompt) for prompt in PROMPTS[:4]])
    assert texts[0].num_reused_tokens == 0
    assert finish(writer, texts) == [alone(engine, text.request) for text in texts]


def test_a_grammar_that_cannot_be_followed_fails_its_text_alone(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened()
    with pytest.raises(EdgesmithError):
        writer.prepare(request(grammar="root ::= missing"))
    with pytest.raises(UsageError, match="a grammar and a JSON schema"):
        writer.prepare(request(grammar='root ::= "a"', json_schema=SCHEMA))
    texts = begun(writer, request(grammar='root ::= "abc"'), request(PROMPTS[1]))
    assert finish(writer, texts) == ["abc", alone(engine, texts[1].request)]


def test_logprobs_are_those_of_the_model_before_sampling(
    opened: Callable[..., LlamaWriter], engine: LlamaEngine
) -> None:
    writer = opened()
    sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=4)
    text, other = begun(writer, request(num_logprobs=5, sampling=sampling, max_tokens=8), request(PROMPTS[1]))
    found: list[TextChunk] = []
    while not found or found[-1].finish_reason is None:
        for whose, chunk in writer.step():
            assert isinstance(chunk, TextChunk)
            assert bool(chunk.logprobs) == (whose is text)
            found += [chunk] if whose is text else []
    chosen = [one for chunk in found for one in chunk.logprobs]
    tokens = engine.tokenize(PROMPTS[0])
    logits = engine.logits(tokens + [one.token for one in chosen], first=len(tokens) - 1)[:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert len(chosen) == 8
    for row, one in zip(expected, chosen, strict=True):
        assert one.logprob == pytest.approx(row[one.token], abs=1e-2)
        likely = np.argsort(-row)[:5]
        assert [each.token for each in one.likely] == likely.tolist()
        assert [each.logprob for each in one.likely] == pytest.approx(row[likely], abs=1e-2)
    assert b"".join(one.data for one in chosen).decode(errors="replace") == "".join(chunk.text for chunk in found)
    finish(writer, [other])


def test_a_sliding_window_allows_several_texts(opened: Callable[..., LlamaWriter], tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(
        **TINY, query_pre_attn_scalar=16, sliding_window=32, hidden_activation="gelu_pytorch_tanh"
    )
    save_model(tmp_path, config)
    save_tokenizer(tmp_path)
    path = to_gguf(tmp_path, tmp_path / "gemma.gguf", dtype="f32").path
    writer, engine = opened(path), LlamaEngine(path)
    texts = begun(writer, *[request(LONG[:300] + prompt, max_tokens=40) for prompt in PROMPTS[:4]])
    assert finish(writer, texts) == [alone(engine, text.request) for text in texts]
    texts = begun(writer, *[request(LONG[:300] + prompt + " so", max_tokens=40) for prompt in PROMPTS[:4]])
    assert min(text.num_reused_tokens for text in texts) > 50
    assert finish(writer, texts) == [alone(engine, text.request) for text in texts]
    engine.close()


def test_a_recurrent_model_writes_one_text_at_a_time(opened: Callable[..., LlamaWriter], tmp_path: Path) -> None:
    path = write_mamba(tmp_path / "mamba.gguf")
    writer, engine = opened(path, num_slots=4), LlamaEngine(path)
    assert writer.num_slots == 1
    for prompt in ("ab cd ef", "ab cd gh", "ab cd ef"):
        texts = begun(writer, request(prompt, max_tokens=12))
        assert texts[0].num_reused_tokens == 0
        assert finish(writer, texts) == [alone(engine, texts[0].request)] != [""]
    engine.close()


def test_an_engine_of_its_own_writes_one_text_after_the_other(engine: LlamaEngine, tiny_file: Path) -> None:
    writer = EngineWriter(LlamaEngine(tiny_file))
    first, second = (writer.prepare(request(prompt)) for prompt in PROMPTS[:2])
    assert writer.begin(first)
    assert not writer.begin(second)
    assert finish(writer, [first]) == [alone(engine, first.request)]
    assert writer.begin(second)
    assert second.num_prompt_tokens == engine.count_prompt_tokens(PROMPTS[1])
    writer.step()
    writer.drop(second)
    assert writer.step() == []
    with pytest.raises(UnsupportedError, match="log-probabilities"):
        writer.prepare(request(num_logprobs=0))
    with pytest.raises(UsageError, match="max_tokens is 0"):
        writer.prepare(request(max_tokens=0))
    writer.close()


def test_a_text_belongs_to_its_writer(opened: Callable[..., LlamaWriter]) -> None:
    text = opened().prepare(request())
    assert isinstance(text, LlamaText)
    assert text.num_wanted == text.num_prompt_tokens + 24
