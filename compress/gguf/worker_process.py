"""The process that runs llama.cpp's quantizer, seen from the process that uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError, UnsupportedError

__all__ = ["QuantizeFailedError", "QuantizeJob", "WorkerProcess"]

# Named as a module, so that whoever follows what this one needs finds it; run as a script, it imports nothing of ours.
_WORKER_MODULE = "compress.gguf.quantize_worker"
_WORKER = Path(__file__).with_name(_WORKER_MODULE.rpartition(".")[2] + ".py")
_FAILED = re.compile(r"failed to quantize: (.*)")
_ASSERTION = re.compile(r"(GGML_ASSERT\(.*?\) failed|fatal error.*|terminate called.*|\S*Error: .*)")


class QuantizeFailedError(EdgesmithError):
    """llama.cpp says that it cannot do it; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class QuantizeJob:
    """One call of `llama_model_quantize`."""

    source: str
    out: str
    file_type: int
    threads: int = 1
    pure: bool = False
    dry_run: bool = False
    buffer_bytes: int = 1 << 28
    """Rows of a tensor that are held at once."""
    tensor_types: Sequence[tuple[str, int]] = ()
    """Regular expressions and types; the first that is found in a tensor's name counts."""
    values: Mapping[str, int | str] = field(default_factory=dict)
    """Keys to be set in the header."""


class WorkerProcess:
    """Runs jobs one after the other; killed with everything it does when it is closed."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        # -P: the folder of the script is no place to import from. No backtrace: it would start a debugger.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )

    @property
    def is_alive(self) -> bool:
        """Whether another job can be run."""
        return self._process.poll() is None

    def run(
        self, job: QuantizeJob, matrix: Mapping[str, NDArray[np.float32]], on_line: Callable[[str], None]
    ) -> list[str]:
        """Do one job.

        Args:
            job: What to do.
            matrix: Mean squares of the inputs by tensor.
            on_line: Told of every line that the library logs.

        Returns:
            These lines.

        Raises:
            QuantizeFailedError: the library refuses.
            UnsupportedError: it ended its process.
        """
        lines: list[str] = []
        rest = ""
        try:
            self._send(job, matrix)
            while answer := self._output.readline():
                message = json.loads(answer)
                if "code" in message:
                    return self._finish(message["code"], lines)
                *whole, rest = (rest + message["line"]).split("\n")
                for line in whole:
                    lines.append(line)
                    on_line(line)
        except BrokenPipeError:
            pass  # it died while it was told what to do; the reason is the same as below
        raise self._death(job, [*lines, rest])

    def close(self) -> None:
        """End the process, whatever it does. Closing twice is harmless."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _send(self, job: QuantizeJob, matrix: Mapping[str, NDArray[np.float32]]) -> None:
        assert self._process.stdin is not None
        described = asdict(job) | {"imatrix": [(name, values.size) for name, values in matrix.items()]}
        self._process.stdin.write(json.dumps(described).encode() + b"\n")
        for values in matrix.values():
            self._process.stdin.write(np.ascontiguousarray(values, np.float32).tobytes())
        self._process.stdin.flush()

    def _finish(self, code: int, lines: list[str]) -> list[str]:
        if code == 0:
            return lines
        reasons = [found[1] for line in lines if (found := _FAILED.search(line))]
        raise QuantizeFailedError(reasons[-1].strip() if reasons else f"it does not say why (code {code})")

    def _death(self, job: QuantizeJob, lines: list[str]) -> UnsupportedError:
        """What to say when the process is gone."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", errors="replace")
        reasons = _ASSERTION.findall(said)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        where = next((f" at {line.strip()[:80]}" for line in reversed(lines) if line.startswith("[")), "")
        mend = "Use another type, or another version of llama-cpp-python."
        if code == -signal.SIGKILL:
            mend = "It was killed from outside: the system may have run out of memory."
        return UnsupportedError(
            f"{job.source}: llama.cpp's quantizer ended with {how}{where}: "
            f"{reasons[-1] if reasons else 'it does not say why'}",
            mend=mend,
        )
