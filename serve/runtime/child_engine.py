"""Engines in a process of their own, so that their crash is not the server's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import EdgesmithError, UsageError
from serve.errors import EngineFailedError, NotReadyError
from serve.runtime import EngineOptions
from serve.runtime.arrays import check_inputs
from serve.runtime.child_frames import Frame, Link
from serve.runtime.child_process import ChildProcess, ChildSettings, ask
from serve.runtime.child_start import checked
from serve.runtime.generation import GREEDY, Sampling, TextChunk

__all__ = ["ChildEngine", "ChildGenerator", "open_child"]


def open_child(
    path: Path,
    options: EngineOptions | None = None,
    *,
    label: str,
    settings: ChildSettings | None = None,
) -> ChildEngine | ChildGenerator:
    """Open an artifact in a process of its own; the process checks its hashes.

    Args:
        path: What `edgesmith.artifact.open_artifact` takes.
        options: Of the engine.
        label: What logs and errors call it.
        settings: Deadlines and delays.

    Raises:
        EdgesmithError: As `open_artifact`, `open_engine` and `open_generation_engine`.
        EngineFailedError: The process died of the artifact.
    """
    process = ChildProcess(path, options or EngineOptions(), label=label, settings=settings)
    return ChildEngine(process) if "signature" in process.hello else ChildGenerator(process)


class ChildEngine:
    """`serve.runtime.Engine` in another process; `run` may be called from several threads, one waits for the other.

    Args:
        process: Whose artifact is a graph; the engine owns it.

    Attributes:
        artifact: As the process opened it.
        process: For its figures.
    """

    def __init__(self, process: ChildProcess) -> None:
        self.process = process
        self.artifact: Artifact = process.artifact
        self.name = f"{process.hello['name']}, in a process of its own"
        self.signature = Signature.model_validate_json(process.hello["signature"])

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `serve.runtime.Engine`.

        Raises:
            UsageError: As the protocol says.
            EngineFailedError: The process crashed or hung on this run; it is started again.
            NotReadyError: It has crashed before and is not back yet, or was closed.
        """
        check_inputs(self.signature.inputs, arrays)
        return self.run_checked(arrays)

    def run_checked(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `run`, for arrays that have been checked against the signature already."""
        return dict(ask(self.process, Frame({"op": "run"}, arrays)).arrays)

    def close(self) -> None:
        """End the process."""
        self.process.close()


class ChildGenerator:
    """`serve.runtime.generation.GenerationEngine` in another process; it writes one text at a time.

    Beginning anything else ends an answer that is being written.

    Args:
        process: Whose artifact generates text; the engine owns it.

    Attributes:
        artifact: As the process opened it.
        process: For its figures.
    """

    def __init__(self, process: ChildProcess) -> None:
        self.process = process
        self.artifact: Artifact = process.artifact
        self.name = str(process.hello["name"])
        self.num_vocabulary = int(process.hello["num_vocabulary"])
        self.context_length = int(process.hello["context_length"])
        self._answer: _Answer | None = None

    @contextmanager
    def _talk(self) -> Iterator[Link]:
        with self.process.talk() as link:
            if (answer := self._answer) is not None:
                self._answer = None
                answer.cancel(link)
            yield link

    def _ask(self, frame: Frame) -> Frame:
        with self._talk() as link:
            link.send(frame)
            return checked(link.receive())

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Split a text; see `serve.runtime.generation.GenerationEngine`."""
        answer = self._ask(Frame({"op": "tokenize", "text": text, "add_special": add_special}))
        return list(answer.values["tokens"])

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        return int(self._ask(Frame({"op": "count", "prompt": prompt})).values["count"])

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one pass; see `serve.runtime.generation.GenerationEngine`."""
        request = Frame({"op": "logits", "first": first}, {"tokens": np.asarray(tokens, np.int64)})
        return self._ask(request).arrays["logits"]

    def free_rooms(self) -> None:
        """Let the process free the room that texts were read in, and forget them.

        Raises:
            EngineFailedError: The process crashed or hung on it.
            NotReadyError: It is not back yet from a crash, or was closed.
        """
        self._ask(Frame({"op": "free"}))

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
        """Continue a prompt; see `serve.runtime.generation.GenerationEngine`. Closing the iterator stops the engine.

        Raises:
            UsageError: As the protocol says.
            EngineFailedError: The process crashed or hung on this text.
            NotReadyError: It is not back yet from a crash, or was closed.
        """
        request = {
            "op": "generate", "prompt": prompt, "max_tokens": max_tokens, "sampling": asdict(sampling),
            "stop": stop if isinstance(stop, str) else list(stop), "grammar": grammar, "json_schema": json_schema,
        }  # fmt: skip
        with self._talk() as link:
            link.send(Frame(request))
            checked(link.receive())
            self._answer = answer = _Answer(link)
        return self._chunks(answer)

    def _chunks(self, answer: _Answer) -> Iterator[TextChunk]:
        try:
            while (chunk := self._next(answer)) is not None:
                yield chunk
        finally:
            if answer is self._answer:
                with suppress(EdgesmithError), self._talk():
                    pass  # which cancels it

    def _next(self, answer: _Answer) -> TextChunk | None:
        try:
            with self.process.talk() as link:
                if answer.link is not link:
                    raise EngineFailedError("the engine's process ended while it wrote this text")
                if answer is not self._answer:
                    raise UsageError("another text was begun", mend="Finish one before you begin the next.")
                chunk = answer.read()
        except NotReadyError as error:
            raise EngineFailedError(f"the engine's process ended while it wrote this text: {error.message}") from error
        if chunk is None:
            self._answer = None
        return chunk

    def close(self) -> None:
        """End the process."""
        self.process.close()


class _Answer:
    """A text that a process is writing."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def read(self) -> TextChunk | None:
        """The next piece; None at the end."""
        values = checked(self.link.receive()).values
        if "chunk" not in values:
            return None
        text, num_tokens, finish_reason = values["chunk"]
        return TextChunk(text=text, num_tokens=num_tokens, finish_reason=finish_reason)

    def cancel(self, link: Link) -> None:
        """Let the process stop writing, and forget what it still wrote."""
        if link is not self.link:
            return  # that process is no more
        link.send(Frame({"op": "cancel"}))
        while "chunk" in link.receive().values:
            pass
