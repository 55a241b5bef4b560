"""The command line of the thin runtime: `python -m serve NAME=PATH …`, without the libraries of the full one."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgesmith.artifact import MANIFEST, read_manifest
from edgesmith.errors import ArtifactError, UsageError
from serve.config import Limits, ModelSpec, ServerConfig

__all__ = [
    "ADMIN_TOKEN",
    "API_KEYS",
    "PLACES",
    "make_parser",
    "parse_model",
    "parse_shadow",
    "parse_split",
    "read_config",
]

ADMIN_TOKEN = "EDGESMITH_ADMIN_TOKEN"  # noqa: S105 (the name of a variable)
API_KEYS = "EDGESMITH_API_KEYS"
PLACES = ("ray",)
T = TypeVar("T")
_EXAMPLE = """examples:
  python -m serve news=release/server
  python -m serve news:1=old news:2=new --split news=1:95,2:5 --record traffic.jsonl
  python -m serve phone=release/phone --threads 2 --slots 4 --port 9000
"""


def parse_model(text: str) -> tuple[str, str, Path]:
    """Read `NAME=PATH`, `NAME:VERSION=PATH` or a bare path, whose last part is then the name.

    >>> parse_model("news:2=out/server")[:2]
    ('news', '2')

    Raises:
        UsageError: A part is empty.
    """
    label, separator, path = text.partition("=")
    if not separator:
        label, path = Path(text).resolve().stem, text
    name, colon, version = label.partition(":")
    if not name or not path or (colon and not version):
        raise UsageError(
            f"{text!r} is no model", mend="Give NAME=PATH or NAME:VERSION=PATH, such as news=release/server."
        )
    return name, version or "1", Path(path)


def parse_split(text: str) -> tuple[str, dict[str, float]]:
    """Read `NAME=VERSION:WEIGHT,…`.

    >>> parse_split("news=1:95,2:5")
    ('news', {'1': 95.0, '2': 5.0})

    Raises:
        UsageError: It is something else, or a weight is negative or no number, or all are 0.
    """
    name, _, arms = text.partition("=")
    weights: dict[str, float] = {}
    for arm in arms.split(","):
        version, _, weight = arm.rpartition(":")
        try:
            weights[version] = float(weight)
        except ValueError:
            weights[version] = math.nan
    good = all(version and math.isfinite(weight) and weight >= 0 for version, weight in weights.items())
    if not name or not good or not sum(weights.values()) or len(weights) != len(arms.split(",")):
        raise UsageError(f"{text!r} is no split", mend="Give NAME=VERSION:WEIGHT,…, such as news=1:95,2:5.")
    return name, weights


def parse_shadow(text: str) -> tuple[str, str]:
    """Read `NAME=VERSION`.

    Raises:
        UsageError: A part is empty.
    """
    name, _, version = text.partition("=")
    if not name or not version:
        raise UsageError(f"{text!r} is no shadow", mend="Give NAME=VERSION, such as news=2.")
    return name, version


def make_parser() -> argparse.ArgumentParser:
    """The parser of `python -m serve`; `edgesmith serve` has the same flags."""
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve models over HTTP: Open Inference Protocol v2, OpenAI, and a page to try them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="NAME[:VERSION]=PATH",
        help="artifact folder, .onnx or .gguf file; a bare path is called by its last part",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    add("--grpc-port", type=int, metavar="PORT", help="also speak gRPC on this port")
    add("--threads", type=int, help="of each model's engine (default: the machine's, shared among the models)")
    add("--max-batch-size", type=int, metavar="ROWS", help="rows run together (default: measured at start)")
    add("--max-queue-delay-us", type=int, default=0, metavar="US", help="how long a batch waits for more (default: 0)")
    add("--max-queue", type=int, default=128, metavar="N", help="requests that may wait for a model (default: 128)")
    add("--timeout", type=float, default=60.0, metavar="S", help="deadline of a request that names none (default: 60)")
    add("--slots", type=int, default=4, help="texts that a language model writes at a time (default: 4)")
    add("--context", type=int, metavar="TOKENS", help="most tokens that a language model keeps room for")
    add("--adapter", action="append", default=[], metavar="FILE[:SCALE]", help="LoRA adapter of a GGUF model")
    add("--isolate", action="store_true", help="run each engine in a process of its own")
    add("--engine-timeout", type=float, default=120.0, metavar="S", help="when an isolated engine hangs (default: 120)")
    add("--repository", type=Path, metavar="DIR", help="folder of models that an admin may load by name")
    add("--split", action="append", default=[], metavar="NAME=VERSION:WEIGHT,…", help="share traffic among versions")
    add("--shadow", action="append", default=[], metavar="NAME=VERSION", help="give a version a copy of the traffic")
    add("--slo-ms", type=float, metavar="MS", help="later answers count against a version that is compared")
    add("--record", type=Path, metavar="FILE", help="write a JSON line for each request, without texts")
    add("--api-keys", type=Path, metavar="FILE", help=f"one key a line; also ${API_KEYS}, separated by commas")
    add("--admin-token", type=Path, metavar="FILE", help=f"opens the admin routes; also ${ADMIN_TOKEN}")
    add("--allow-host", action="append", default=[], metavar="NAME", help="further name that clients may call it by")
    add("--allow-origin", action="append", default=[], metavar="URL", help="web page whose scripts may send requests")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM file with the certificate's chain")
    add("--tls-key", type=Path, metavar="FILE", help="PEM file with its private key")
    add("--drain", type=float, default=30.0, metavar="S", help="time for running requests at the end (default: 30)")
    add("--max-body-mb", type=float, default=64.0, metavar="MB", help="largest request, in MiB (default: 64)")
    add("--announce", type=Path, metavar="FILE", help="write the address here once all models are ready")
    add("--no-page", action="store_true", help="do not serve the page at /")
    add("--on", choices=PLACES, help="run it on Ray Serve, in the cluster of $RAY_ADDRESS or one of this machine's own")
    add("--replicas", type=int, default=1, metavar="N", help="servers that run at a time, with --on ray (default: 1)")
    return parser


def parse_adapter(text: str) -> tuple[Path, float]:
    """Read `FILE` or `FILE:SCALE`.

    >>> parse_adapter("a.gguf:0.5")[1]
    0.5
    """
    file, colon, scale = text.rpartition(":")
    try:
        return (Path(file), float(scale)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def read_config(given: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Make a configuration of parsed arguments.

    Args:
        given: From `make_parser`.
        environment: May hold the keys.

    Raises:
        UsageError: An argument cannot be obeyed.
    """
    specs = [_spec(*parse_model(text), given) for text in given.models or bundled_models()]
    names = [(spec.name, spec.version) for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"{twice[0]}:{twice[1]} is given twice", mend=f"Give the second one a version: {twice[0]}:2=PATH."
        )
    if not specs and given.repository is None:
        raise UsageError("no model is given", mend="Give NAME=PATH, such as news=release/server.")
    keys = _keys(given.api_keys, environment, API_KEYS)
    tokens = _keys(given.admin_token, environment, ADMIN_TOKEN)
    if len(tokens) > 1:
        raise UsageError("there are several admin tokens", mend="Give one.")
    _check_numbers(given)
    _check_places(given)
    return ServerConfig(
        models=tuple(specs),
        host=given.host,
        port=given.port,
        grpc_port=given.grpc_port,
        limits=Limits(max_body_bytes=int(given.max_body_mb * (1 << 20))),
        repository=given.repository,
        admin_token=tokens[0] if tokens else None,
        api_keys=keys,
        allowed_hosts=tuple(given.allow_host),
        allowed_origins=tuple(given.allow_origin),
        tls_certificate=given.tls_certificate,
        tls_key=given.tls_key,
        drain_s=given.drain,
        splits=_once(map(parse_split, given.split), "--split"),
        shadows=_once(map(parse_shadow, given.shadow), "--shadow"),
        slo_ms=given.slo_ms,
        record_to=given.record,
        has_page=not given.no_page,
        announce_to=given.announce,
    )


def _check_numbers(given: argparse.Namespace) -> None:
    """Refuse numbers that nothing can be done with, each by its flag."""
    for flag, value in (("--port", given.port), ("--grpc-port", given.grpc_port)):
        if value is not None and not 0 <= value <= 65535:
            raise UsageError(f"{flag} is {value}; it must be from 0 to 65535")
    for flag, value in (
        ("--drain", given.drain),
        ("--timeout", given.timeout),
        ("--engine-timeout", given.engine_timeout),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{flag} is {value:g}; it must be 0 s or more")
    for flag, value in (("--max-body-mb", given.max_body_mb), ("--slo-ms", given.slo_ms)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} is {value:g}; it must be above 0")


def _check_places(given: argparse.Namespace) -> None:
    """Refuse files, folders and pages that cannot be there, before anything is loaded."""
    if given.repository is not None and not given.repository.is_dir():
        raise UsageError(f"--repository {given.repository}: no such folder")
    if given.announce is not None and not given.announce.resolve().parent.is_dir():
        raise UsageError(f"--announce {given.announce}: its folder is not there", mend="Make the folder first.")
    for origin in given.allow_origin:
        if not re.fullmatch(r"https?://[^/\s]+/?", origin):
            raise UsageError(f"--allow-origin {origin}: is no web page's origin", mend="Give https://example.org.")
    for adapter, _ in map(parse_adapter, given.adapter):
        if not adapter.is_file():
            raise UsageError(f"--adapter {adapter}: no such file")


def _once(pairs: Iterable[tuple[str, T]], flag: str) -> dict[str, T]:
    """Pairs as a mapping; a model that is named twice is a mistake."""
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"{flag} names {name} twice", mend="Give all of its versions in one.")
        found[name] = value
    return found


def _keys(path: Path | None, environment: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """Keys of a file, or else of a variable, where they may stand between commas; none without both."""
    from serve.access import parse_keys, read_keys

    if path is not None:
        return read_keys(path)
    text = environment.get(variable, "")
    return parse_keys(text.replace(",", "\n"), source=f"${variable}") if text.strip() else ()


def bundled_models() -> list[str]:
    """What the bundle serves that this runtime lies in, as `NAME:VERSION=PATH`; nothing where it lies in none.

    Raises:
        ArtifactError: The bundle's index is damaged.
    """
    root = Path(__file__).resolve().parents[1]
    index = root / "bundle.json"
    if not index.is_file():
        return []
    try:
        listed = json.loads(index.read_bytes())["models"]
        models = [(f"{one['name']}:{one['version']}", root / one["path"], one["digest"]) for one in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{index}: is damaged: {error}", mend="Copy the bundle again.") from error
    for label, path, digest in models:
        if (path / MANIFEST).is_file() and read_manifest(path).digest != digest:
            raise ArtifactError(f"{path}: is not the {label} that was packed", mend="Copy the bundle again.")
    return [f"{label}={path}" for label, path, _ in models]


def _spec(name: str, version: str, path: Path, given: argparse.Namespace) -> ModelSpec:
    return ModelSpec(
        name=name,
        version=version,
        path=path,
        threads=given.threads,
        max_batch_size=given.max_batch_size,
        max_queue_delay_us=given.max_queue_delay_us,
        max_queue=given.max_queue,
        timeout_s=given.timeout or None,
        adapters=tuple(map(parse_adapter, given.adapter)),
        num_context=given.context,
        num_slots=given.slots,
        is_isolated=given.isolate,
        engine_timeout_s=given.engine_timeout or None,
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> ServerConfig:
    """Read a command line; wrong flags end the process with code 2, as argparse does."""
    return read_config(make_parser().parse_args(arguments))
