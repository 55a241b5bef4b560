"""A served language model: jobs from the loop's thread, chunks back on it."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from edgesmith.artifact import open_artifact
from edgesmith.errors import UnsupportedError, UsageError
from serve.config import ModelSpec
from serve.errors import DeadlineError, EngineFailedError, NotReadyError, OverloadedError
from serve.models.job import GenerationJob
from serve.models.text_model import TextModel
from serve.runtime import EngineOptions
from serve.runtime.child_engine import ChildGenerator, open_child
from serve.runtime.generation import TextChunk
from serve.runtime.gguf_engine import LlamaEngine

PROMPT = "In 1849, the price rose from $3.50"
LONGEST = 480


@dataclass(eq=False)
class Asked:
    """A job, and what it was told."""

    job: GenerationJob
    ended: asyncio.Future[GenerationJob]
    chunks: list[TextChunk] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


def ask(model: TextModel, prompt: str = PROMPT, **options: Any) -> Asked:
    ended: asyncio.Future[GenerationJob] = asyncio.get_running_loop().create_future()

    def take(chunk: TextChunk) -> None:
        assert not ended.done()
        asked.threads.add(threading.get_ident())
        asked.chunks.append(chunk)

    options = {"max_tokens": 12, **options}
    job = GenerationJob(
        prompt=prompt, on_chunk=take, done=ended.set_result, received_ns=time.monotonic_ns(), **options
    )  # a second call of `done` would raise
    asked = Asked(job, ended)
    model.submit(job)
    return asked


@asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncIterator[TextModel]:
    spec = ModelSpec(**{"name": "tiny", "path": path, "threads": 1, **options})
    model = TextModel(spec, open_artifact(path), loop=asyncio.get_running_loop())
    try:
        yield model
    finally:
        await model.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_every_job_gets_its_chunks_in_order_on_the_loops_thread(tiny_file: Path) -> None:
    engine = LlamaEngine(tiny_file)

    async def run() -> None:
        async with serving(tiny_file, num_slots=3) as model:
            asked = [ask(model, f"{index} {PROMPT}", max_tokens=5 + index) for index in range(7)]
            for one in asked:
                job = await one.ended
                assert job.error is None
                assert job.finish_reason == one.chunks[-1].finish_reason == "length"
                assert one.threads == {threading.get_ident()}
                assert job.num_tokens == job.max_tokens == sum(chunk.num_tokens for chunk in one.chunks)
                assert job.received_ns <= job.started_ns <= job.first_ns <= job.finished_ns
                chunks = engine.generate(job.prompt, max_tokens=job.max_tokens)
                assert one.text == "".join(chunk.text for chunk in chunks)
            stats = model.stats
            assert stats.success_count == stats.first_token_ns.count == 7
            assert stats.generated_tokens == sum(one.job.num_tokens for one in asked)
            assert stats.between_tokens_ns.count == stats.generated_tokens - 7
            assert stats.prompt_tokens == sum(one.job.num_prompt_tokens for one in asked)
            assert stats.reused_tokens == sum(one.job.num_reused_tokens for one in asked)
            assert stats.execution_count < stats.generated_tokens  # several were written in one run
            assert (model.num_running, model.num_waiting) == (0, 0)

    asyncio.run(run())
    engine.close()


def test_a_full_queue_refuses_at_once_and_has_room_again_later(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_slots=1, max_queue=2) as model:
            first = ask(model, max_tokens=LONGEST)
            await until(lambda: model.num_running == 1)
            waiting = [ask(model), ask(model)]
            assert model.num_waiting == 2
            with pytest.raises(OverloadedError, match="2 requests wait"):
                ask(model)
            first.job.is_cancelled = True
            for one in waiting:
                assert (await one.ended).finish_reason == "length"
            assert (await ask(model).ended).error is None

    asyncio.run(run())


def test_a_cancelled_job_leaves_its_slot_and_is_told_once(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_slots=1) as model:
            first, second, third = ask(model, max_tokens=LONGEST), ask(model), ask(model)
            await until(lambda: len(first.chunks) > 2)
            first.job.is_cancelled = third.job.is_cancelled = True
            count = len(first.chunks)
            assert (await second.ended).finish_reason == "length"
            for one in (first, third):
                job = await one.ended
                assert (job.finish_reason, job.error) == (None, None)
            assert len(first.chunks) == count
            assert third.chunks == []
            assert model.stats.failures == {"cancelled": 2}

    asyncio.run(run())


def test_an_engine_that_hangs_keeps_nobody_waiting_past_a_deadline(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, is_inside = threading.Event(), threading.Event()

    async def run() -> None:
        async with serving(tiny_file, num_slots=1, max_queue=1) as model:
            writer = model._scheduler._writer
            step = writer.step

            def held() -> Any:
                is_inside.set()
                assert gate.wait(30)
                return step()

            monkeypatch.setattr(writer, "step", held)
            stated = ask(model, deadline_ns=time.monotonic_ns() + 500_000_000)
            assert await asyncio.to_thread(is_inside.wait, 30)
            gone = ask(model)
            with pytest.raises(OverloadedError):
                ask(model)
            gone.job.is_cancelled = True
            next_one = ask(model)
            assert "complete" in str((await stated.ended).error)
            gate.set()
            assert (await next_one.ended).finish_reason == "length"
            assert stated.chunks == []
            assert model.stats.failures == {"deadline": 1, "cancelled": 1}

    asyncio.run(run())


def test_deadlines_hold_for_waiting_and_for_writing(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_slots=1, timeout_s=0.05) as model:
            long = ask(model, max_tokens=LONGEST)
            await until(lambda: bool(long.chunks))
            stated = ask(model, deadline_ns=time.monotonic_ns() - 1)
            assert isinstance((await stated.ended).error, DeadlineError)
            waiting = ask(model)
            long.job.deadline_ns = None
            assert isinstance((await waiting.ended).error, DeadlineError)
            assert not long.ended.done()  # the time to begin is over, but it was begun
            long.job.deadline_ns = time.monotonic_ns()
            error = (await long.ended).error
            assert isinstance(error, DeadlineError)
            assert "complete" in str(error)
            assert model.stats.failures == {"deadline": 3}

    asyncio.run(run())


def test_what_cannot_be_answered_is_refused_with_the_numbers(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_context=256) as model:
            assert (model.context_length, model.total_tokens) == (256, 256)
            for options, message in (
                ({"max_tokens": 0}, "max_tokens is 0"),
                ({"max_tokens": 300}, "the 256 that"),
                ({"num_logprobs": 21}, "from 0 to 20"),
                ({"stop": "text"}, "a list of at most"),
                ({"grammar": 'root ::= "a"', "json_schema": {}}, "a grammar and a JSON schema"),
            ):
                with pytest.raises(UsageError, match=message):
                    ask(model, **options)
            error = (await ask(model, max_tokens=250).ended).error
            assert isinstance(error, UsageError)
            assert "256" in str(error)
            assert isinstance((await ask(model, "half \ud800").ended).error, UsageError)
            assert (await ask(model).ended).error is None
            assert model.stats.failures == {"bad_request": 2}

    asyncio.run(run())


def test_a_failure_of_the_engine_fails_those_in_it_and_no_others(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_slots=2) as model:
            asked = [ask(model, max_tokens=LONGEST) for _ in range(3)]
            await until(lambda: model.num_running == 2 and all(one.chunks for one in asked[:2]))
            writer: Any = model._scheduler._writer
            await asyncio.wrap_future(model._scheduler.call(writer._slots.close))
            for one in asked[:2]:
                assert isinstance((await one.ended).error, EngineFailedError)
            asked[2].job.is_cancelled = True
            assert (await ask(model).ended).finish_reason == "length"
            assert model.stats.failures["engine_failed"] == 2

    asyncio.run(run())


def test_a_listener_that_fails_harms_no_other(tiny_file: Path) -> None:
    async def run() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        async with serving(tiny_file) as model:
            bad, good = ask(model, max_tokens=LONGEST), ask(model)

            def fail(_: TextChunk) -> None:
                raise ValueError("gone")

            bad.job.on_chunk = fail
            assert (await good.ended).finish_reason == "length"
            assert (await bad.ended).finish_reason is None
            assert len(complaints) == 1

    asyncio.run(run())


def test_closing_finishes_what_was_taken_or_fails_it_after_a_time(tiny_file: Path) -> None:
    async def run() -> None:
        async with serving(tiny_file, num_slots=1) as model:
            asked = [ask(model, max_tokens=40) for _ in range(3)]
            closing = asyncio.create_task(model.close())
            await asyncio.sleep(0)
            await until(lambda: model._scheduler._is_closing)
            with pytest.raises(NotReadyError):
                ask(model)
            await closing
            assert [(await one.ended).finish_reason for one in asked] == ["length"] * 3
        async with serving(tiny_file, num_slots=1) as model:
            asked = [ask(model, max_tokens=LONGEST) for _ in range(2)]
            await until(lambda: bool(asked[0].chunks))
            await model.close(timeout_s=0.0)
            assert {type((await one.ended).error) for one in asked} == {NotReadyError}

    asyncio.run(run())


def test_an_engine_in_a_process_of_its_own_writes_one_text_at_a_time(tiny_file: Path) -> None:
    engine = LlamaEngine(tiny_file)
    expected = "".join(chunk.text for chunk in engine.generate(PROMPT, max_tokens=12))
    engine.close()

    async def run() -> None:
        spec = ModelSpec(name="other", path=tiny_file, num_slots=4)
        child = cast(ChildGenerator, open_child(tiny_file, EngineOptions(threads=1), label="other"))
        model = TextModel(spec, child.artifact, loop=asyncio.get_running_loop(), engine=child)
        assert (model.num_slots, model.can_generate, model.can_embed) == (1, True, False)
        asked = [ask(model) for _ in range(3)]
        await until(lambda: bool(asked[0].chunks))
        assert model.count_tokens(PROMPT) == 19  # and the text that is being written goes on
        assert [(await one.ended).finish_reason for one in asked] == ["length"] * 3
        assert [one.text for one in asked] == [expected] * 3
        refused = await ask(model, num_logprobs=0).ended
        assert isinstance(refused.error, UnsupportedError)
        with pytest.raises(UnsupportedError, match="makes no vectors"):
            await model.embed(["a"])
        await model.close()

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("is_isolated", [False, True])
def test_what_was_read_to_check_an_engine_is_forgotten(tiny_file: Path, is_isolated: bool) -> None:
    async def run() -> None:
        spec = ModelSpec(name="other", path=tiny_file, num_slots=1)
        options = EngineOptions(threads=1)
        engine: Any = open_child(tiny_file, options, label="other") if is_isolated else LlamaEngine(tiny_file, options)
        assert list(engine.generate(PROMPT, max_tokens=3))

        def size() -> int:
            if not is_isolated:
                return len(engine._rooms())
            lines = Path(f"/proc/{engine.process.pid}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

        before = size()
        model = TextModel(spec, open_artifact(tiny_file), loop=asyncio.get_running_loop(), engine=engine)
        assert size() < before
        assert (await ask(model).ended).num_reused_tokens == 0
        await model.close()

    asyncio.run(run())


def test_vectors_are_made_on_the_writers_thread(minilm_folder: Path, tmp_path: Path) -> None:
    from export.gguf.to_gguf import to_gguf

    path = to_gguf(minilm_folder, tmp_path / "minilm.gguf", dtype="f32").path
    texts = ["Shares fell.", "A late goal won the cup."]

    async def run() -> None:
        async with serving(path) as model:
            assert (model.can_generate, model.can_embed) == (False, True)
            found = await model.embed(texts, normalize=True)
            assert found.shape == (2, 384)
            assert np.linalg.norm(found, axis=1) == pytest.approx(1)
            assert model.count_tokens(texts[0]) == 5
            with pytest.raises(UsageError, match="text 1 has"):
                await model.embed([texts[0], "cup " * 2000])
            with pytest.raises(UnsupportedError, match="generates no text"):
                ask(model)
        with pytest.raises(NotReadyError):
            await model.embed(texts)

    asyncio.run(run())


def test_a_conversation_is_written_as_the_model_reads_it(smollm2_file: Path, tmp_path: Path) -> None:
    shutil.copy(smollm2_file, tmp_path / "model.gguf")

    async def run() -> None:
        async with serving(tmp_path / "model.gguf", num_slots=2) as model:
            prompt = model.chat_prompt([{"role": "user", "content": "What is the capital of France?"}])
            assert prompt.endswith(
                "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
            )
            asked = [ask(model, prompt, max_tokens=20) for _ in range(2)]
            for one in asked:
                assert (await one.ended).finish_reason == "stop"
                assert "Paris" in one.text
            assert asked[0].job.num_prompt_tokens == model.count_tokens(prompt)

    asyncio.run(run())
