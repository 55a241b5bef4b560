"""A language model that is being served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Artifact
from edgesmith.errors import UnsupportedError, UsageError
from serve.config import ModelSpec
from serve.models.job import GenerationJob
from serve.models.scheduler import Scheduler
from serve.models.stats import ModelStats
from serve.models.threads import in_thread
from serve.runtime import EngineOptions, choose_threads, open_generation_engine
from serve.runtime.chat_prompt import read_chat
from serve.runtime.child_engine import ChildGenerator
from serve.runtime.generation import MAX_LOGPROBS, GenerationEngine, check_request
from serve.runtime.prompt_counter import PromptCounter
from serve.runtime.text_writer import EngineWriter, TextWriter

__all__ = ["TextModel"]


class TextModel:
    """A language model with its engine, its queue and the thread that it writes on.

    GGUF in this process is written several texts at a time; other engines, and those in a process of their own, one
    after the other. Outcomes of jobs that were taken are counted in `stats`; what `submit` refuses is the caller's.

    Args:
        spec: Slots, queue, context, deadlines. `num_context` is for all texts together; of engines that write one at
            a time, for that one.
        artifact: Of kind `gguf` or `genai`.
        loop: On whose thread jobs come, and their chunks go.
        engine: Opened from the artifact before, and the model's from now on; None opens it here, which takes a while.

    Attributes:
        name: Of the spec.
        version: Of the spec.
        spec: As given.
        artifact: What is served.
        engine_name: Engine and version.
        context_length: The most tokens of one text, prompt and answer together.
        num_slots: Texts that are written at a time.
        total_tokens: The most tokens of all texts that are written at a time together.
        room_bytes: Memory of keys and values where it is ours to choose, else 0.
        can_generate: Whether it continues texts.
        can_embed: Whether it makes vectors of texts.
        stats: What it has done so far.

    Raises:
        ArtifactError: The model is damaged, or there is not enough memory.
        MissingExtraError: The engine's library is not installed.
        UnsupportedError: No engine generates with this kind.
        UsageError: `num_context` does not fit the model.
    """

    def __init__(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        *,
        loop: asyncio.AbstractEventLoop,
        engine: GenerationEngine | None = None,
    ) -> None:
        self.name = spec.name
        self.version = spec.version
        self.spec = spec
        self.artifact = artifact
        self.stats = ModelStats()
        self._loop = loop
        self._engine = engine if engine is not None else _open(spec, artifact)
        try:
            self._chat = read_chat(artifact, self._engine)
            # A child would give up the text that it writes to count the tokens of another one.
            is_child = isinstance(self._engine, ChildGenerator)
            self._counter = PromptCounter(artifact) if is_child else self._engine
            _forget_checks(self._engine)
            writer = _make_writer(self._engine, spec)
        except BaseException:
            self._engine.close()
            raise
        self.engine_name = self._engine.name
        self.context_length = writer.context_length
        self.num_slots = writer.num_slots
        self.total_tokens = writer.total_tokens
        self.room_bytes: int = getattr(writer, "size_bytes", 0)
        model = getattr(self._engine, "model", None)  # of llama.cpp
        self.can_generate: bool = model is None or model.generates
        self.can_embed: bool = model is not None and model.pooling not in (None, "none")
        self._scheduler = Scheduler(
            writer, name=spec.name, stats=self.stats, max_queue=spec.max_queue, timeout_s=spec.timeout_s, loop=loop
        )

    @property
    def num_running(self) -> int:
        """Texts that are being written."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a slot."""
        return self._scheduler.num_waiting

    def submit(self, job: GenerationJob) -> None:
        """Take a job, on the loop's thread; its `done` is called exactly once, later, on the loop's thread.

        A cancelled job ends with neither `finish_reason` nor `error`.

        Raises:
            UsageError: A setting is out of range. What only the tokenizer can tell comes as the job's error.
            UnsupportedError: The model generates no text.
            OverloadedError: The queue is full.
            NotReadyError: The model is being closed.
        """
        if not self.can_generate:
            raise UnsupportedError(f"{self.name} generates no text", mend="Ask it for vectors.")
        check_request(num_prompt=1, max_tokens=job.max_tokens, context_length=self.context_length, stop=job.stop)
        wanted = job.num_logprobs
        if wanted is not None and not 0 <= wanted <= MAX_LOGPROBS:
            raise UsageError(f"num_logprobs is {wanted}; it must be from 0 to {MAX_LOGPROBS}")
        if job.grammar is not None and job.json_schema is not None:
            raise UsageError("a grammar and a JSON schema are given", mend="Give one of them.")
        self._scheduler.submit(job)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write a conversation down as the model reads it. Any thread; long conversations take milliseconds.

        Raises:
            UnsupportedError: The model has no chat template.
            UsageError: The template refuses the conversation.
        """
        return self._chat.prompt(messages)

    def count_tokens(self, text: str) -> int:
        """Tokens that the model reads for a text, special tokens included. Any thread, while others are written."""
        return self._counter.count_prompt_tokens(text)

    async def embed(self, texts: Sequence[str], *, normalize: bool = False) -> NDArray[np.float32]:
        """Make one vector of each text, pooled as the file says; between two steps of the answers being written.

        Args:
            texts: Each of at most `context_length` tokens.
            normalize: Give the vectors length 1.

        Returns:
            Vectors, float32 of shape [texts, width].

        Raises:
            UsageError: A text has no tokens, or too many; the message says which.
            UnsupportedError: The model makes no vectors.
            NotReadyError: The model is being closed.
        """
        engine: Any = self._engine
        if not self.can_embed:
            raise UnsupportedError(f"{self.name} makes no vectors of texts", mend="Ask a model that does.")
        rows = []
        for index, text in enumerate(texts):
            try:
                call = self._scheduler.call(partial(engine.embed, [text], normalize=normalize))
                rows.append(await asyncio.wrap_future(call, loop=self._loop))
            except UsageError as error:
                raise UsageError(error.message.replace("text 0", f"text {index}"), mend=error.mend) from error
        return np.concatenate(rows) if rows else np.empty((0, 0), dtype=np.float32)

    async def close(self, timeout_s: float | None = None) -> None:
        """Take no more jobs, finish those that there are, and free the engine. Closing twice is harmless.

        Args:
            timeout_s: What is not finished then fails. None waits.
        """
        await in_thread(partial(self._scheduler.close, timeout_s), f"closing {self.name}")


def _open(spec: ModelSpec, artifact: Artifact) -> GenerationEngine:
    # What a GGUF's texts may have together is the writer's to limit: it may be more than one of them can have.
    num_context = None if artifact.kind == "gguf" else spec.num_context
    options = EngineOptions(threads=spec.threads or choose_threads(), adapters=spec.adapters, num_context=num_context)
    return open_generation_engine(artifact, options)


def _forget_checks(engine: GenerationEngine) -> None:
    """Forget what was read to check the engine: it takes memory, and the first answers would depend on it."""
    if (free := getattr(engine, "free_rooms", None)) is not None:
        free()


def _make_writer(engine: GenerationEngine, spec: ModelSpec) -> TextWriter[Any]:
    """The way of writing that gets most out of an engine."""
    if (model := getattr(engine, "model", None)) is not None and model.generates:
        from serve.runtime.llama_writer import LlamaWriter

        return LlamaWriter(cast(Any, engine), num_slots=spec.num_slots, num_tokens=spec.num_context)
    return EngineWriter(engine)
