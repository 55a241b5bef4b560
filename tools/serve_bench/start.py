"""From a process's start to ready, its memory beside the engine's, and the size of what is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from serve_bench.context import Context, token_arrays
from serve_bench.processes import resident_mb
from serve_bench.report import Estimate, at_most, median_of
from serve_bench.subjects import ROOT, EngineChild, launch_ours
from serve_bench.wire import Wire, infer_body

__all__ = ["measure_start"]

NUM_STARTS = 9
NEWEST, PINNED, LOCKED = "pip install '.[serve]'", "the same, at this project's pins", "a bundle's lock file"
IMPORT = (
    "import time; c, w = time.process_time(), time.perf_counter(); import serve.app, serve.arguments; "
    "print((time.perf_counter() - w) * 1e3, (time.process_time() - c) * 1e3)"
)


def measure_start(context: Context) -> None:
    """Measure starts, memory, imports and the sizes of environments."""
    _starts(context)
    _imports(context)
    if not context.arguments.no_install:
        _sizes(context)


def _starts(context: Context) -> None:
    context.say("starts")
    flags = (f"m={context.classifier}", "--threads", "1")
    request = infer_body(token_arrays(1, 128), is_binary=True)
    starts, extra, servers, engines = [], [], [], []
    for number in range(context.times(NUM_STARTS, 3)):
        with launch_ours(*flags) as server:
            wire = Wire(server.port)
            if {wire.ask(request)[0] for _ in range(20)} != {200}:
                raise SystemExit(server.log.read_text())
            memory = resident_mb(server.pid)
        engine = EngineChild(context.classifier, context.folder)
        engine.run(engine.keep("one", token_arrays(1, 128)), calls=20)
        alone = resident_mb(engine.pid)
        engine.close()
        if number:  # the first one may have read files from the disk
            starts.append(server.ready_s)
        servers.append(memory)
        engines.append(alone)
        extra.append(memory - alone)
    longest = Estimate(max(starts), "s", len(starts))
    memory_more = median_of(extra, "MB")
    context.report.table(
        "Start and memory, MiniLM int8",
        ("what", "median", "most", "n"),
        [
            ["process start to ready, s", median_of(starts, ""), max(starts), len(starts)],
            ["resident memory of the server, MB", median_of(servers, ""), max(servers), len(servers)],
            ["resident memory of the engine alone, MB", median_of(engines, ""), max(engines), len(engines)],
            ["the server's above the engine's, MB", memory_more, max(extra), len(extra)],
        ],
        "Files are in the page cache. The engine alone: Python, NumPy, ONNX Runtime, the model opened by "
        "serve.runtime and run 20 times; the server after 20 requests.",
    )
    context.report.check(at_most("start to ready, the slowest, ≤ 1.5 s", longest, 1.5))
    context.report.check(at_most("resident memory above the engine's ≤ 60 MB", memory_more, 60))


def _imports(context: Context) -> None:
    found = [
        [float(x) for x in subprocess.check_output([sys.executable, "-c", IMPORT], cwd=ROOT, text=True).split()]
        for _ in range(context.times(7, 3))
    ]
    walls, cpus = zip(*found, strict=True)
    rows = [["wall", median_of(walls, "")], ["CPU", median_of(cpus, "")]]
    context.report.table("Import of serve.app", ("time", "ms"), rows, f"n = {len(found)} fresh interpreters.")


def _sizes(context: Context) -> None:
    """Install the serve extra, newest and pinned, and a bundle's lock file into fresh environments."""
    rows: list[list[object]] = []
    for name in (NEWEST, PINNED, LOCKED):
        context.say(f"size of {name}")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if name == LOCKED:
                command = [sys.executable, "-c", "from edgesmith.cli import main; main()", "bundle"]
                command += [str(context.classifier), "--runtime", "-o", str(folder / "bundle")]
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                wanted = ["--no-deps", "-r", str(next((folder / "bundle").rglob("requirements.lock")))]
            else:
                wanted = [f"{_copy(folder / 'source')}[serve]"]
                wanted += ["-c", str(ROOT / "constraints.txt")] if name == PINNED else []
            added, code, largest = _install(folder / "venv", wanted)
            rows.append([name, added, code, largest])
            if name == NEWEST:
                context.report.check(at_most("size of the serve extra ≤ 250 MB", Estimate(added, "MB", 1), 250))
    context.report.table(
        "Size of an environment",
        ("what", "added, MB", "of it compiled .pyc, MB", "largest, MB"),
        rows,
        "What installing adds to an environment that has pip and setuptools only; MB are 10^6 bytes.",
    )


def _install(environment: Path, wanted: list[str]) -> tuple[float, float, str]:
    """Make an environment and install into it; give the MB that came, those of them that pip compiled, the largest."""
    venv.create(environment, with_pip=True)
    sites = next((environment / "lib").glob("python*/site-packages"))
    before, code = _size_mb(sites), _size_mb(sites, "*.pyc")
    pip = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *wanted], check=True)
    parts = sorted(((_size_mb(one), one.name) for one in sites.iterdir() if one.name != "pip"), reverse=True)
    largest = ", ".join(f"{label} {size:.0f}" for size, label in parts[:6])
    return _size_mb(sites) - before, _size_mb(sites, "*.pyc") - code, largest


def _copy(folder: Path) -> Path:
    """The project's sources, so that building leaves nothing in them."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("edgesmith", "compress", "export", "serve", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _size_mb(path: Path, pattern: str = "*") -> float:
    files = path.rglob(pattern) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6
