"""The process that runs onnxruntime-genai's builder, apart from everything else: `python -m` this, with a request.

What is printed goes to the parent, which shows progress by it. Python's own ways to the network and to other programs
are closed: the builder would stamp the commit of whatever Git folder it lies in, and ask hubs for files that a
checkpoint lacks. That keeps a build to the checkpoint; it is no sandbox, for compiled code is not asked.
"""

from __future__ import annotations

import ctypes
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

# Source: https://docs.python.org/3/library/audit_events.html
_OUT_OF_REACH = frozenset(
    {
        *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"),
        *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
        *("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
        *("pty.spawn", "os.startfile"),
    }
)
_PARENT_DEATH_SIGNAL, _SIGKILL = 1, 9


def main() -> int:
    """Obey the request whose file is the first argument; say in `result.json` beside it how it went."""
    request_file = Path(sys.argv[1])
    request = json.loads(request_file.read_text())
    _die_with_parent()
    sys.addaudithook(_refuse)
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    try:
        notes = _build(request)
        result: dict[str, Any] = {"notes": notes, "peak_bytes": _peak_bytes()}
    except Exception as error:  # noqa: BLE001 — everything the builder and its libraries raise
        result = {"error": type(error).__name__, "message": str(error)}
    request_file.with_name("result.json").write_text(json.dumps(result))
    return 0


def _build(request: dict[str, Any]) -> list[str]:
    import onnxruntime_genai.models  # puts the builder's folder on the path

    del onnxruntime_genai
    import builder  # type: ignore[import-not-found]

    from export.genai.graph_passes import finish_graph

    source, out, cache = request["checkpoint"], request["out"], request["cache"]
    precision = request["builder_precision"]
    options = builder.parse_extra_options(
        None, source, out, precision, "cpu", cache, [f"{key}={value}" for key, value in request["options"].items()]
    )
    _state_positions(options["hf_details"]["hf_config"])
    builder.create_model(None, source, out, precision, "cpu", cache, **options)
    return finish_graph(Path(out), precision=request["precision"], is_tied=request["is_tied"])


def _state_positions(config: Any) -> None:
    """Say rotary positions as the builder reads them: transformers 5 keeps them by kind of layer, without `type`."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    if "full_attention" in rope and "sliding_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    config.rope_parameters = rope | {"type": rope.get("rope_type", "default")}


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent, however that one ends. Source: prctl(2)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, _SIGKILL)


def _refuse(event: str, _: Any) -> None:
    if event in _OUT_OF_REACH:
        raise OSError(f"{event} is out of reach while a model is built")


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
