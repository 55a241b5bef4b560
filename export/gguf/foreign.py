"""Convert a checkpoint with a converter of the user's own, for families that are not known here."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint import open_checkpoint, quantization_of
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.files import sha256_file, storage_errors, temporary_sibling
from export.gguf.tensor_plan import FloatType
from serve.runtime.gguf_file import read_gguf

__all__ = ["ForeignExport", "convert_with", "converter_digest", "converter_script"]

_SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py")
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_STORED: Mapping[FloatType, str] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_SHOWN_LINES = 12
_SHOWN_BYTES = 1 << 14
_PATIENCE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class ForeignExport:
    """What a converter wrote, as our own reader finds it."""

    path: Path
    converter: Path
    """The program that ran."""
    architecture: str
    """As llama.cpp calls it."""
    num_tensors: int
    num_parameters: int
    size_bytes: int


def converter_script(converter: Path) -> Path:
    """Find the program to run: a converter itself, or the one in a llama.cpp checkout.

    Raises:
        UsageError: there is none, or it cannot be executed.
    """
    if converter.is_dir():
        found = next((converter / name for name in _SCRIPTS if (converter / name).is_file()), None)
        if found is None:
            raise UsageError(
                f"{converter}: has no {_SCRIPTS[0]}",
                mend="Name the folder of a llama.cpp checkout, or a converter that takes --outfile and --outtype.",
            )
        return found
    if not converter.is_file():
        raise UsageError(f"{converter}: no such converter", mend="Name a llama.cpp checkout, or a converter.")
    if converter.suffix != ".py" and not os.access(converter, os.X_OK):
        raise UsageError(f"{converter}: cannot be executed", mend=f"Allow it with `chmod +x {converter}`.")
    return converter


def converter_digest(converter: Path) -> str:
    """Hash what a conversion depends on: all Python files of a llama.cpp checkout, or else the program itself.

    Args:
        converter: As `convert_with` takes it; a script inside a checkout stands for the checkout.

    Returns:
        `sha256:` and 64 hexadecimal digits.

    Raises:
        UsageError: there is no such converter.
        StorageError: a file cannot be read.
    """
    program = converter_script(converter).resolve()
    folder = program.parent
    is_checkout = converter.is_dir() or program.name in _SCRIPTS or (folder / "gguf-py").is_dir()
    files = _python_files(folder) if is_checkout else [program]
    digest = hashlib.sha256(program.name.encode())
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest.update(f"\0{name}\0{sha256_file(path)}".encode(errors="surrogateescape"))
    return f"sha256:{digest.hexdigest()}"


def _python_files(folder: Path) -> list[Path]:
    """Sorted, those of hidden folders and of bytecode left out; links to folders are not followed."""
    found: list[Path] = []
    with storage_errors(folder):
        for root, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
            paths = (Path(root, name) for name in names if name.endswith(".py"))
            found.extend(path for path in paths if path.is_file())
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def convert_with(
    converter: Path, checkpoint: Path, out_file: Path, *, dtype: FloatType = "f16", time_limit_s: float = 3600.0
) -> ForeignExport:
    """Convert a checkpoint in a process of its own: without the user's environment, and told to stay offline.

    The converter is the user's own program and runs with the user's rights. What it writes is trusted no more than
    any file: it is read by our reader here, and is to be proven by `check_tokenizer`, `check_chat_template` and
    `check_logits` like our own.

    Args:
        converter: A llama.cpp checkout, a Python script for this Python, or an executable. It is called with the
            checkpoint's folder, `--outfile` and `--outtype`.
        checkpoint: Hugging Face folder with safetensors weights.
        out_file: The new file; it appears when it is complete.
        dtype: Of most of the weights.
        time_limit_s: After this time in seconds it is ended, with all that it started.

    Returns:
        What is in the file.

    Raises:
        UsageError: the converter is missing, cannot be started, or takes too long.
        UnsupportedError: it fails or writes nothing, or the weights are quantized.
        CheckpointError: the checkpoint is damaged or unsafe.
        ArtifactError: what it wrote is damaged, hostile, or has other types than asked for.
        StorageError: the file cannot be written.
    """
    program = converter_script(converter).resolve()
    if dtype not in _STORED:
        raise UsageError(f"{dtype!r} cannot be written", mend="Ask for f32, f16 or bf16; others are made from those.")
    if found := quantization_of(open_checkpoint(checkpoint).config):
        raise UnsupportedError(
            f"{checkpoint}: its weights are quantized ({found}); a second rounding would add to the first",
            mend="Merge the adapter into the unquantized base, and convert that.",
        )
    temporary = temporary_sibling(out_file.resolve())
    with storage_errors(out_file):
        out_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="edgesmith-convert-") as room:
            try:
                arguments = [str(checkpoint.resolve()), "--outfile", str(temporary), "--outtype", dtype]
                _run(program, arguments, Path(room), time_limit_s)
                result = _check(program, temporary, dtype, out_file)
                temporary.replace(out_file)
            finally:
                temporary.unlink(missing_ok=True)
    return result


def _run(program: Path, arguments: list[str], room: Path, time_limit_s: float) -> None:
    """Run it to its end, with `room` as its home and for its temporary files."""
    command = [sys.executable, str(program)] if program.suffix == ".py" else [str(program)]
    try:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=room,
            env=_environment(room),
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(
            f"{program}: cannot be started: {error.strerror}", mend="Try it by hand with --help."
        ) from error
    log = _Log(process)
    code = None
    try:
        code = process.wait(time_limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _end(process)
        log.close()
    if code is None:
        raise UsageError(
            f"{program}: did not end within {time_limit_s:g} s{_tail(log.last)}", mend="Allow it more time."
        )
    if code:
        how = f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        raise UnsupportedError(
            f"{program}: {how}{_tail(log.last)}",
            mend="Its last words say why: a newer llama.cpp may know the family, or it may need a package.",
        )
    if not Path(arguments[2]).is_file():
        raise UnsupportedError(
            f"{program}: ended without an error, but wrote no file{_tail(log.last)}",
            mend="It must write the file that --outfile names, in one part.",
        )


def _environment(room: Path) -> dict[str, str]:
    """Nothing of the user's: no tokens, no proxies, no settings of Python."""
    kept = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    folders = {key: str(room) for key in ("HOME", "USERPROFILE", "TMPDIR", "TMP", "TEMP", "HF_HOME", "XDG_CACHE_HOME")}
    return kept | folders | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "LC_ALL": "C.UTF-8",
    }  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of it and of what it started."""
    with suppress(ProcessLookupError, PermissionError):  # all are gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _Log:
    """Takes in all that a process prints, and keeps only the end of it, in memory."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.last = b""
        self._output = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._output.fileno(), _SHOWN_BYTES):
            self.last = (self.last + piece)[-_SHOWN_BYTES:]

    def close(self) -> None:
        """Stop; a program that left the session and still holds the pipe is not waited for."""
        self._thread.join(_PATIENCE_S)
        if not self._thread.is_alive():
            self._output.close()


def _tail(said: bytes) -> str:
    """The last lines that it printed, without characters that would control a terminal."""
    text = said.decode("utf-8", errors="replace")
    lines = [
        "".join(char if char.isprintable() else " " for char in line) for line in text.splitlines() if line.strip()
    ]
    return "".join(f"\n    {line[:300]}" for line in lines[-_SHOWN_LINES:]) or "; it printed nothing"


def _check(program: Path, path: Path, dtype: FloatType, out_file: Path) -> ForeignExport:
    """Read what was written; most of its weights must be of the type that was asked for."""
    try:
        found = read_gguf(path)
    except (ArtifactError, UnsupportedError) as error:
        message = error.message.removeprefix(f"{path}: ")
        raise ArtifactError(
            f"{program}: what it wrote {message}", mend="Use a converter of a current llama.cpp."
        ) from error
    if not found.tensors:
        raise ArtifactError(f"{program}: wrote a file without weights", mend="Do not ask it for the vocabulary alone.")
    if found.main_type != _STORED[dtype]:
        raise ArtifactError(
            f"{program}: wrote most of the weights as {found.main_type}, {_STORED[dtype]} was asked for",
            mend="The converter must obey --outtype.",
        )
    return ForeignExport(
        path=out_file,
        converter=program,
        architecture=found.architecture,
        num_tensors=len(found.tensors),
        num_parameters=sum(math.prod(tensor.shape) for tensor in found.tensors.values()),
        size_bytes=path.stat().st_size,
    )
