"""GGUF files through llama.cpp: text, logits and vectors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from serve.runtime import EngineOptions
from serve.runtime.generation import GREEDY, Sampling, TextChunk, check_request
from serve.runtime.grammar import check_grammar
from serve.runtime.json_grammar import json_schema_to_grammar
from serve.runtime.llama_adapters import LlamaAdapters
from serve.runtime.llama_answer import LlamaAnswer
from serve.runtime.llama_library import LlamaContext, LlamaModel, LlamaPooling, library_name
from serve.runtime.llama_room import LlamaRoom
from serve.runtime.llama_session import LlamaSession
from serve.runtime.llama_slots import LlamaSlots

__all__ = ["LlamaEngine", "open_engine"]

MODEL_FILE = "model.gguf"
_BATCH = 256  # Larger ones read no faster on a CPU, and take more memory.
_FIRST_ROOM = 1024


def open_engine(artifact: Artifact, options: EngineOptions) -> LlamaEngine:
    """Open an artifact of kind `gguf`, or a bare file.

    Raises:
        ArtifactError: The file is missing, damaged, hostile, or nothing that llama.cpp runs.
        MissingExtraError: llama-cpp-python is not installed.
    """
    if artifact.path.is_file():
        return LlamaEngine(artifact.path, options)
    return LlamaEngine(artifact.file(MODEL_FILE), options, extra_ends=_stated_ends(artifact.folder))


def _stated_ends(folder: Path) -> frozenset[int]:
    """Tokens that the generation settings beside a model name as its ends."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    try:
        stated = json.loads(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", mend="Make the artifact again.") from error
    ends = stated if isinstance(stated, list) else [stated]
    return frozenset(end for end in ends if isinstance(end, int))


class LlamaEngine:
    """A GGUF file in llama.cpp, on the CPU. Weights are mapped into memory, not read into it.

    Room for a text grows with what is asked for, up to `context_length`. Several threads may use one engine, but
    an answer ends with an error when another one is begun: there is room for one text.

    Args:
        path: The `.gguf` file.
        options: Threads, adapters, longest text, batch size.
        extra_ends: Tokens that end an answer, besides those that the file names.

    Attributes:
        name: llama.cpp and its version.
        num_reused_tokens: Of the last prompt, tokens that were still known from the text before.
        extra_ends: Tokens that end an answer, besides those that the file names.

    Raises:
        ArtifactError: Our reader or llama.cpp refuses the file or an adapter.
        UnsupportedError: See `read_gguf`.
        UsageError: An option does not fit the model.
        MissingExtraError: llama-cpp-python is not installed.
    """

    def __init__(
        self, path: Path, options: EngineOptions | None = None, *, extra_ends: frozenset[int] = frozenset()
    ) -> None:
        self._options = options or EngineOptions()
        self._lock = threading.RLock()
        self._session = LlamaRoom[LlamaSession]()
        self._exact = LlamaRoom[LlamaContext]()
        self._pooled = LlamaRoom[LlamaContext]()
        self._turn = 0
        self.num_reused_tokens = 0
        self.name = library_name()
        self._model: LlamaModel | None = LlamaModel(path)
        try:
            self._adapters = LlamaAdapters(self._model, self._options.adapters)
            self._num_context = _context_length(self._model, self._options.num_context)
        except BaseException:
            self.close()
            raise
        self.extra_ends = extra_ends

    @property
    def model(self) -> LlamaModel:
        """The opened file.

        Raises:
            UsageError: The engine is closed.
        """
        if self._model is None:
            raise UsageError("the engine is closed", mend="Open the file again.")
        return self._model

    @property
    def num_vocabulary(self) -> int:
        """Width of the logits."""
        return self.model.num_tokens

    @property
    def context_length(self) -> int:
        """The most tokens of one text: what was asked for, or what the model was trained with."""
        return self._num_context

    @property
    def adapters(self) -> tuple[tuple[Path, float], ...]:
        """The adapters and their present scales."""
        return self._adapters.scales

    def scale_adapters(self, scales: Sequence[float]) -> None:
        """Change how much of each adapter is added; no file is read again.

        Args:
            scales: As many as there are adapters, in the order of the options; 0 takes one out.

        Raises:
            UsageError: There are more or fewer, or one is no number.
        """
        with self._lock:
            self._turn += 1
            self._adapters.scale(scales)
            for room in self._rooms():
                self._adapters.put_on(room)

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Split a text as the model reads it; special tokens that it spells out are recognized."""
        with self._lock:
            return self.model.tokenize(text, add_special=add_special)

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        return len(self.tokenize(prompt))

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one pass; see `serve.runtime.generation.GenerationEngine`.

        Keys and values are in single precision and attention is computed as written, so that what differs from
        another file is the weights.
        """
        with self._lock:
            if len(tokens) > self._num_context:
                raise UsageError(f"{len(tokens)} tokens are more than the {self._num_context} that the model takes")
            room = self._exact.grown(
                max(len(tokens), 1),
                lambda size: LlamaContext(self.model, num_tokens=size, threads=self._options.threads),
                self._adapters,
            )
            return room.run(tokens, first=first)

    def embed(
        self, texts: Sequence[str], *, pooling: LlamaPooling | None = None, normalize: bool = False
    ) -> NDArray[np.float32]:
        """Make one vector of each text.

        Args:
            texts: Each of at most `context_length` tokens.
            pooling: How the vectors of a text's tokens become one; None for what the file says.
            normalize: Give the vectors length 1.

        Returns:
            Vectors, float32 of shape [texts, width].

        Raises:
            UsageError: A text has no tokens, or too many; the message says which.
            UnsupportedError: The file names no pooling, and none is asked for.
        """
        with self._lock:
            chosen = pooling or self.model.pooling
            if chosen in (None, "none"):
                raise UnsupportedError(
                    f"{self.model.path}: does not say how the vectors of a text's tokens become one",
                    mend="Say how: pooling='mean', 'cls' or 'last', as the model was trained.",
                )
            rows = np.empty((len(texts), self.model.width), dtype=np.float32)
            for index, text in enumerate(texts):
                tokens = self.model.tokenize(text, add_special=True)
                if not 1 <= len(tokens) <= self._num_context:
                    raise UsageError(
                        f"text {index} has {len(tokens)} tokens; the model takes 1 to {self._num_context}",
                        mend="Shorten the text, or leave it out.",
                    )
                rows[index] = self._pooled_room(chosen, len(tokens)).run(tokens)
        if normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return rows

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Iterator[TextChunk]:
        """Continue a prompt; see `serve.runtime.generation.GenerationEngine`.

        Raises:
            UnsupportedError: The model generates no text, or the schema or grammar asks for what is not known here.
        """
        tokens, grammar = self.check_prompt(prompt, grammar=grammar, json_schema=json_schema)
        check_request(num_prompt=len(tokens), max_tokens=max_tokens, context_length=self._num_context, stop=stop)
        return self._answer(tokens, max_tokens, sampling, stop, grammar)

    def check_prompt(
        self, prompt: str, *, grammar: str | None = None, json_schema: Mapping[str, Any] | None = None
    ) -> tuple[list[int], str | None]:
        """What `generate` begins with, which takes milliseconds for a long prompt or a large schema.

        Returns:
            The tokens of the prompt, and the grammar that the answer must follow, if any.

        Raises:
            UsageError: Both a grammar and a schema are given, or the prompt has half a character.
            UnsupportedError: The model generates no text, or the schema or grammar asks for what is not known here.
        """
        if not self.model.generates:
            raise UnsupportedError(
                f"{self.model.path}: a model of kind {self.model.file.architecture!r} generates no text",
                mend="Ask it for vectors.",
            )
        if json_schema is not None:
            if grammar is not None:
                raise UsageError("a grammar and a JSON schema are given", mend="Give one of them.")
            grammar = json_schema_to_grammar(json_schema)
        if grammar is not None:
            check_grammar(grammar)
        return self.tokenize(prompt), grammar

    def _answer(
        self, tokens: list[int], max_tokens: int, sampling: Sampling, stop: Sequence[str], grammar: str | None
    ) -> Iterator[TextChunk]:
        with self._lock:
            self._turn = turn = self._turn + 1
            session = self._room_for(len(tokens) + max_tokens)
            answer = LlamaAnswer(
                self.model, prompt=tokens, max_tokens=max_tokens, sampling=sampling, stop=stop, grammar=grammar,
                extra_ends=self.extra_ends,
            )  # fmt: skip
        with answer:
            is_last = False
            while not is_last:
                with self._lock:
                    self._check_turn(turn)
                    if answer.token is None:
                        if sampling.is_repeatable:
                            session.forget()
                        self.num_reused_tokens = session.read(tokens)
                    else:
                        session.step(answer.token)
                    chunk = answer.write(session.logits())
                yield chunk
                is_last = chunk.finish_reason is not None

    def _check_turn(self, turn: int) -> None:
        if self._model is None:
            raise UsageError("the engine was closed while it answered")
        if turn != self._turn:
            raise UsageError(
                "another answer was begun before this one ended",
                mend="Take one answer to its end, or open the file once for each.",
            )

    def free_rooms(self) -> None:
        """Free the room that texts were read in, and forget them; it is made again when it is needed.

        An answer that is being written ends with an error.
        """
        with self._lock:
            self._turn += 1
            for room in (self._session, self._exact, self._pooled):
                room.close()

    def make_slots(self, *, num_slots: int, num_tokens: int, num_batch: int) -> LlamaSlots:
        """Make room for several texts at a time, with the adapters as they are now.

        It is the caller's, who closes it before the engine. What room the engine had for a text is freed.

        Raises:
            ArtifactError: See `LlamaSlots`.
        """
        with self._lock:
            self._turn += 1
            self._session.close()
            self._exact.close()
            slots = LlamaSlots(
                self.model, num_slots=num_slots, num_tokens=num_tokens, num_batch=num_batch,
                threads=self._options.threads,
            )  # fmt: skip
            try:
                self._adapters.put_on(slots)
            except BaseException:
                slots.close()
                raise
            return slots

    def _room_for(self, num_tokens: int) -> LlamaSession:
        """The session; it doubles, so that this happens rarely."""

        def make(size: int) -> LlamaSession:
            wanted = self._options.num_context or max(_FIRST_ROOM, 1 << (size - 1).bit_length())
            return LlamaSession(
                self.model,
                num_tokens=min(wanted, self._num_context),
                num_batch=self._options.num_batch or _BATCH,
                threads=self._options.threads,
            )

        return self._session.grown(num_tokens, make, self._adapters)

    def _pooled_room(self, pooling: LlamaPooling, num_tokens: int) -> LlamaContext:
        def make(size: int) -> LlamaContext:
            return LlamaContext(
                self.model,
                num_tokens=min(self._num_context, max(64, 1 << (size - 1).bit_length())),
                threads=self._options.threads,
                states=True,
                pooling=pooling,
            )

        return self._pooled.grown(num_tokens, make, self._adapters, kind=pooling)

    def _rooms(self) -> list[LlamaSession | LlamaContext]:
        rooms = (self._session.held, self._exact.held, self._pooled.held)
        return [room for room in rooms if room is not None]

    def close(self) -> None:
        """Free the model and all room. Closing twice is harmless."""
        with self._lock:
            for room in (self._session, self._exact, self._pooled):
                room.close()
            if self._model is not None:
                self._model.close()
                self._model = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


def _context_length(model: LlamaModel, wanted: int | None) -> int:
    trained = model.trained_length
    if trained < 1:
        raise ArtifactError(f"{model.path}: says that it was trained on texts of {trained} tokens")
    if wanted is not None and wanted > trained:
        raise UsageError(
            f"num_context is {wanted:,}, but the model was trained on texts of {trained:,} tokens",
            mend=f"Ask for at most {trained:,}.",
        )
    return wanted if wanted is not None else trained
