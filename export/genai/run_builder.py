"""Run onnxruntime-genai's builder in a process of its own: its memory, its printing and its ends stay there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgesmith.errors import EdgesmithError, MissingExtraError, StorageError, UnsupportedError
from edgesmith.files import storage_errors
from edgesmith.progress import Advance, Progress

__all__ = ["BuilderRun", "require_builder", "run_builder"]

_LIBRARIES = ("onnxruntime_genai", "onnx_ir", "onnxruntime", "transformers", "torch")
_LAYER = re.compile(r"Reading (layer \d+|embedding layer|final norm|LM head)")
_MATRIX = re.compile(r"start to quantize /(model|lm_head)")
_WARNING = re.compile(r"warning: ?(?P<text>.+)", re.IGNORECASE)
# The builder's warnings about formats that are not asked for.
_CHATTER = re.compile(r"deprecated|loses accuracy with float16|shared_embeddings")
_KEPT_LINES = 40
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT", "HOME")


@dataclass(frozen=True, kw_only=True)
class BuilderRun:
    """How the builder ended."""

    notes: tuple[str, ...]
    """What it warned of, and what was changed after it."""
    peak_bytes: int
    """Memory of its process at the peak, libraries included."""


def require_builder() -> None:
    """Check that the builder and what it imports are installed.

    Raises:
        MissingExtraError: One of them is not.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"not installed: {', '.join(missing)}; needed to build a model for onnxruntime-genai",
            mend="Install them with `pip install 'edgesmith[genai]'`.",
        )


def run_builder(
    request: Mapping[str, object], *, work: Path, num_steps: int, threads: int, progress: Progress
) -> BuilderRun:
    """Build a model as a request says.

    Args:
        request: See `export.genai.builder_process`; JSON values.
        work: An empty folder for what must pass between the processes, removed by the caller.
        num_steps: Layers to read and matrices to quantize, as far as known.
        threads: For the process.
        progress: Advanced by one a layer and a matrix.

    Raises:
        UnsupportedError: The builder says that it cannot.
        StorageError: The disk is full.
        EdgesmithError: It failed, or its process was killed.
    """
    request_file = work / "request.json"
    with storage_errors(work):
        request_file.write_text(json.dumps(request))
        process = subprocess.Popen(
            [sys.executable, "-m", "export.genai.builder_process", str(request_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(work, threads),
        )
    with process:
        try:
            with progress.bar("build for onnxruntime-genai", num_steps) as advance:
                lines, warned = _follow(process.stdout or (), advance)
            process.wait()
        finally:
            process.kill()
    return _result(work / "result.json", process.returncode, lines, warned)


def _environment(work: Path, threads: int) -> dict[str, str]:
    """No hub, no telemetry, no graphics card, one order of sets, as few threads as were asked for."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(work / "hub"),
        "TMPDIR": str(work),
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _follow(output: Iterable[str], advance: Advance) -> tuple[list[str], list[str]]:
    """Read until the end; the last lines, and the warnings."""
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    warned: list[str] = []
    for line in output:
        text = line.strip()
        if not text:
            continue
        lines.append(text)
        if _LAYER.search(text) or _MATRIX.match(text):
            advance(1)
        found = _WARNING.match(text)
        if found and not _CHATTER.search(text) and found["text"] not in warned:
            warned.append(found["text"])
    return list(lines), warned


def _result(path: Path, code: int, lines: list[str], warned: list[str]) -> BuilderRun:
    last = lines[-1] if lines else "it said nothing"
    if not path.is_file():
        if any(_FULL_DISK.search(line) for line in lines):
            raise StorageError(f"the disk is full: {last}", mend="Free disk space, or choose another place.")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise EdgesmithError(
            f"onnxruntime-genai's builder {how} (last line: {last})",
            mend="Signal 9 is most often a lack of memory: building takes about five times the checkpoint's size."
            if code == -9
            else "",
        )
    result = json.loads(path.read_text())
    if "error" in result:
        message = f"onnxruntime-genai's builder: {result['message'] or result['error']}"
        if _FULL_DISK.search(result["message"]):
            raise StorageError(message, mend="Free disk space, or choose another place.")
        if result["error"] == "NotImplementedError":
            raise UnsupportedError(message, mend="Use GGUF for this model.")
        raise EdgesmithError(f"{message} ({result['error']})")
    return BuilderRun(notes=(*warned, *result["notes"]), peak_bytes=result["peak_bytes"])
