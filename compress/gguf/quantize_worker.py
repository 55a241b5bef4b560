"""Call llama.cpp's quantizer in a process of its own: run as a script, it knows nothing of this project.

The library ends the process where an assertion fails, and cannot be stopped; here neither harms the caller.
Jobs come as one JSON line each on standard input, followed by the bytes of the importance matrix; JSON lines go
back: `{"line": …}` for everything that the library logs, `{"code": …}` at the end of a job. The process ends when
its input does, even in the middle of a job.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
from typing import Any, BinaryIO

_TEXT_BYTES = 128  # of llama_model_kv_override


def main() -> None:
    """Serve jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # should the library print
    import llama_cpp

    def log(_: int, text: bytes, __: object) -> None:
        answers.write(json.dumps({"line": text.decode("utf-8", errors="replace")}) + "\n")

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    jobs: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(sys.stdin.buffer, jobs), daemon=True).start()
    while True:
        answers.write(json.dumps({"code": _run(llama_cpp, *jobs.get())}) + "\n")


def _read_jobs(source: BinaryIO, jobs: queue.Queue[tuple[dict[str, Any], bytes]]) -> None:
    while line := source.readline():
        job = json.loads(line)
        jobs.put((job, source.read(4 * sum(size for _, size in job["imatrix"]))))
    os._exit(0)


def _run(llama_cpp: Any, job: dict[str, Any], matrix: bytes) -> int:
    """One call; what the structure points to lives until it returns."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = job["threads"]
    settings.ftype = job["file_type"]
    settings.pure = job["pure"]
    settings.dry_run = job["dry_run"]
    if hasattr(settings, "max_buf_size"):
        settings.max_buf_size = job["buffer_bytes"]
    overrides = (llama_cpp.llama_model_tensor_override * (len(job["tensor_types"]) + 1))()
    for override, (pattern, number) in zip(overrides, job["tensor_types"], strict=False):
        override.pattern, override.type = pattern.encode(), number
    values = (llama_cpp.llama_model_kv_override * (len(job["values"]) + 1))()
    for entry, (key, value) in zip(values, job["values"].items(), strict=False):
        _set_value(llama_cpp, entry, key, value)
    numbers = (ctypes.c_float * (len(matrix) // 4)).from_buffer_copy(matrix or bytes(4))
    entries = (llama_cpp.llama_model_imatrix_data * (len(job["imatrix"]) + 1))()
    start = 0
    for entry, (name, size) in zip(entries, job["imatrix"], strict=False):
        entry.name, entry.size = name.encode(), size
        entry.data = ctypes.cast(ctypes.byref(numbers, 4 * start), ctypes.POINTER(ctypes.c_float))
        start += size
    settings.tt_overrides = overrides if job["tensor_types"] else None
    settings.kv_overrides = values if job["values"] else None
    settings.imatrix = entries if job["imatrix"] else None
    return int(
        llama_cpp.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["out"]), ctypes.byref(settings))
    )


def _set_value(llama_cpp: Any, entry: Any, key: str, value: int | str) -> None:
    entry.key = key.encode()
    if isinstance(value, str):
        entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
        entry.value.val_str = value.encode()[: _TEXT_BYTES - 1].decode("utf-8", errors="ignore").encode()
    else:
        entry.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
        entry.value.val_i64 = value


if __name__ == "__main__":
    main()
