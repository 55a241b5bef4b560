"""Writing texts step by step: what the scheduler of a served language model asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from edgesmith.errors import EdgesmithError, UnsupportedError
from serve.runtime.generation import (
    GREEDY,
    GenerationEngine,
    Sampling,
    TextChunk,
    check_request,
)

__all__ = ["EngineText", "EngineWriter", "Text", "TextRequest", "TextWriter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """What `serve.runtime.generation.GenerationEngine.generate` is asked, and how many likely tokens to name."""

    prompt: str
    max_tokens: int
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    num_logprobs: int | None = None


@dataclass(slots=True, eq=False)
class Text:
    """A text that is to be written.

    Attributes:
        request: What was asked.
        num_prompt_tokens: Known when it is begun.
        num_reused_tokens: Of them, those that need not be read again; known when it is begun.
    """

    request: TextRequest
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0


AnyText = TypeVar("AnyText", bound=Text)


class TextWriter(Protocol[AnyText]):
    """Writes up to `num_slots` texts at a time. All but `prepare` is called on one thread."""

    @property
    def num_slots(self) -> int:
        """Texts at a time."""

    @property
    def context_length(self) -> int:
        """The most tokens of one text, prompt and answer together."""

    @property
    def total_tokens(self) -> int:
        """The most tokens of all texts at a time together."""

    @property
    def is_engine_free(self) -> bool:
        """Whether its engine may be asked other things between two steps; else only between two texts."""

    def prepare(self, request: TextRequest) -> AnyText:
        """Check a request and split its prompt, on any thread while others are written.

        Raises:
            UsageError: It can never be answered; the message has the numbers.
            UnsupportedError: The engine does not know what it asks for.
        """

    def begin(self, text: AnyText) -> bool:
        """Give a text a slot; False where there is no room for it now.

        Raises:
            EdgesmithError: It cannot be written; the others go on.
        """

    def step(self) -> list[tuple[AnyText, TextChunk | EdgesmithError]]:
        """Read and write a little of every text that was begun.

        Returns:
            What came, for some of them. A text whose chunk has a finish reason, or that got an error, is over.

        Raises:
            EdgesmithError: The engine failed on all of them: call `renew`.
        """

    def drop(self, text: AnyText) -> None:
        """Stop writing a text that was begun."""

    def renew(self) -> None:
        """Forget all texts, and what the engine read of them."""

    def close(self) -> None:
        """Free what belongs to the writer, and the engine. Closing twice is harmless."""


@dataclass(slots=True, eq=False)
class EngineText(Text):
    """A text that an engine writes by itself."""

    chunks: Iterator[TextChunk] | None = None


class EngineWriter:
    """Writes one text at a time, with an engine that has room for one.

    Args:
        engine: It belongs to the writer from now on.
    """

    num_slots = 1
    is_engine_free = False

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine
        self._text: EngineText | None = None

    @property
    def context_length(self) -> int:
        """The most tokens of one text, prompt and answer together."""
        return self._engine.context_length

    @property
    def total_tokens(self) -> int:
        """The same: there is one text at a time."""
        return self._engine.context_length

    def prepare(self, request: TextRequest) -> EngineText:
        """Check what can be checked without the engine, which may be writing."""
        if request.num_logprobs is not None:
            raise UnsupportedError(
                f"{self._engine.name} gives no log-probabilities here",
                mend="Ask for none, or serve the model as GGUF in the server's own process.",
            )
        check_request(num_prompt=1, max_tokens=request.max_tokens, context_length=None, stop=request.stop)
        return EngineText(request)

    def begin(self, text: EngineText) -> bool:
        """Begin a text, if there is none."""
        if self._text is not None:
            return False
        request = text.request
        text.num_prompt_tokens = self._engine.count_prompt_tokens(request.prompt)
        text.chunks = self._engine.generate(
            request.prompt, max_tokens=request.max_tokens, sampling=request.sampling, stop=request.stop,
            grammar=request.grammar, json_schema=request.json_schema,
        )  # fmt: skip
        self._text = text
        return True

    def step(self) -> list[tuple[EngineText, TextChunk | EdgesmithError]]:
        """Take the next chunk."""
        text = self._text
        if text is None or text.chunks is None:
            return []
        try:
            chunk = next(text.chunks)
        except EdgesmithError as error:
            self.drop(text)
            return [(text, error)]
        text.num_reused_tokens = getattr(self._engine, "num_reused_tokens", 0)
        if chunk.finish_reason is not None:
            self.drop(text)
        return [(text, chunk)]

    def drop(self, text: EngineText) -> None:
        """Stop the engine's answer."""
        if text is self._text:
            self._text = None
        close = getattr(text.chunks, "close", None)
        text.chunks = None
        if close is not None:
            with suppress(EdgesmithError):
                close()

    def renew(self) -> None:
        """Drop the text; engines recover by themselves."""
        if self._text is not None:
            self.drop(self._text)

    def close(self) -> None:
        """Close the engine."""
        self.renew()
        self._engine.close()
