"""The process of one engine: `python -m serve.runtime.child DESCRIPTOR`, started by `serve.runtime.child_process`.

It opens one artifact and answers what comes over the socket that it was given, one thing at a time, until the other
end is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import ArtifactError, EdgesmithError
from serve.runtime import Engine, EngineOptions, open_engine, open_generation_engine
from serve.runtime.child_frames import Frame, Link, LostError
from serve.runtime.generation import GenerationEngine, Sampling

__all__ = ["GENERATING_KINDS", "describe_error", "main"]

GENERATING_KINDS = ("gguf", "genai")

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500


def main(arguments: list[str]) -> int:
    """Serve one engine; returns when the other end is closed."""
    _settle()
    link = Link(socket.socket(fileno=int(arguments[0])))
    with contextlib.suppress(LostError):
        _serve(link)
    return 0


def _settle() -> None:
    """Live as long as the server, and no longer."""
    faulthandler.enable()
    # A terminal's Ctrl-C and a service manager's stop reach every process of the group; the server drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):  # where memory runs out, rather this process than the server
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


def _serve(link: Link) -> None:
    request = link.receive().values
    try:
        artifact = _open(Path(request["path"]), request["digest"])
        options = _options(request["options"])
        engine: Engine | GenerationEngine
        said: dict[str, Any]
        if artifact.kind in GENERATING_KINDS:
            engine = open_generation_engine(artifact, options)
            said = {"num_vocabulary": engine.num_vocabulary, "context_length": engine.context_length}
        else:
            engine = open_engine(artifact, options)
            said = {"signature": engine.signature.model_dump_json()}
    except Exception as error:  # noqa: BLE001 - whatever it is, the server is told
        link.send(Frame({"error": describe_error(error)}))
        return
    said |= {"name": engine.name, "manifest": artifact.manifest.model_dump_json()}
    link.send(Frame(said))
    try:
        _Answerer(link, engine).run()
    finally:
        engine.close()


def _open(path: Path, digest: str | None) -> Artifact:
    artifact = open_artifact(path)
    if digest is not None and artifact.digest != digest:
        raise ArtifactError(
            f"{path}: is another artifact than the one that was being served",
            mend="Load the model again, so that the new one is checked before it answers.",
        )
    return artifact


def _options(values: dict[str, Any]) -> EngineOptions:
    adapters = tuple((Path(path), float(scale)) for path, scale in values["adapters"])
    return EngineOptions(**{**values, "adapters": adapters})


def describe_error(error: BaseException) -> dict[str, str]:
    """An error as JSON: the name of its class, its message and its mend."""
    if isinstance(error, EdgesmithError):
        return {"type": type(error).__name__, "message": error.message, "mend": error.mend}
    return {"type": type(error).__name__, "message": f"{type(error).__name__}: {error}", "mend": ""}


class _Answerer:
    """Answers one frame after the other."""

    def __init__(self, link: Link, engine: Any) -> None:
        self._link = link
        self._engine = engine
        # Arrays were checked by the server's side, which has the same signature.
        self._run = getattr(engine, "run_checked", getattr(engine, "run", None))

    def run(self) -> None:
        """Until the other end is closed."""
        while True:
            request = self._link.receive()
            try:
                answer = self._answer(request)
            except LostError:
                raise
            except Exception as error:  # noqa: BLE001 - the engine goes on; only this request has failed
                answer = Frame({"error": describe_error(error)})
            if answer is not None:
                self._link.send(answer)

    def _answer(self, request: Frame) -> Frame | None:
        values = request.values
        match values["op"]:
            case "run":
                return Frame({}, cast(Any, self._run)(request.arrays))
            case "generate":
                return self._generate(values)
            case "cancel":
                return None  # what it was meant for has ended meanwhile
            case "tokenize":
                return Frame({"tokens": self._engine.tokenize(values["text"], add_special=values["add_special"])})
            case "count":
                return Frame({"count": self._engine.count_prompt_tokens(values["prompt"])})
            case "logits":
                logits = self._engine.logits(request.arrays["tokens"].tolist(), first=values["first"])
                return Frame({}, {"logits": logits})
            case "free":
                if (free := getattr(self._engine, "free_rooms", None)) is not None:
                    free()
                return Frame({})
            case op:
                raise ValueError(f"no operation {op!r}")

    def _generate(self, values: Any) -> Frame:
        """Send one frame a chunk, until the answer ends or is cancelled; gives the last frame."""
        sampling = Sampling(**values["sampling"])
        chosen = {name: values[name] for name in ("prompt", "max_tokens", "stop", "grammar", "json_schema")}
        chunks: Iterator[Any] = self._engine.generate(**chosen, sampling=sampling)
        self._link.send(Frame({"begun": True}))
        try:
            for chunk in chunks:
                if self._is_cancelled():
                    break
                self._link.send(Frame({"chunk": [chunk.text, chunk.num_tokens, chunk.finish_reason]}))
        finally:
            if (close := getattr(chunks, "close", None)) is not None:
                close()
        return Frame({"ended": True})

    def _is_cancelled(self) -> bool:
        """Whether something has come while an answer is written: that can only be its cancellation."""
        return self._link.has_input() and self._link.receive().values["op"] == "cancel"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without the libraries' destructors: nothing is left to save
