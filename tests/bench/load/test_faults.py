"""Faults of the load generator's own machine: a full disk, too few open files, a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.load import LoadPlan, LoadResult, constant, run_load
from edgesmith.errors import StorageError
from tests.bench.load.conftest import RunningServer, StartServer

ROOT = Path(__file__).parents[3]
SECRET = "s3cret-of-the-test"


def run_limited(server: RunningServer, out: Path, limit: str, value: int, rate: float, seconds: float) -> None:
    """Run a load whose Locust has a limit of resources."""
    script = (
        "import resource, subprocess, sys\n"
        "from pathlib import Path\n"
        "import bench.load.run as run\n"
        "from bench.load import LoadPlan, constant, run_load\n"
        "start = subprocess.Popen\n"
        "def limited(*arguments, **options):\n"
        f"    set_limit = lambda: resource.setrlimit(resource.{limit}, ({value}, {value}))\n"
        "    return start(*arguments, **options, preexec_fn=set_limit)\n"
        "run.subprocess.Popen = limited\n"
        f"run_load(LoadPlan(url={server.url!r}, shape=constant({rate}, {seconds}), timeout_s=3, warm_up_requests=1),"
        f" out=Path({str(out)!r}))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, timeout=60, check=True)


def test_a_full_disk_ends_the_load_with_what_was_stored(start_server: StartServer, tmp_path: Path) -> None:
    run_limited(start_server(), tmp_path, "RLIMIT_FSIZE", 24 << 10, rate=200, seconds=4)
    result = LoadResult.load(tmp_path)
    assert not result.is_complete
    assert "File too large" in result.stopped_because
    assert 0 < result.num_requests == len(result.wall_ns) <= (24 << 10) // 56
    assert not any("histogram only" in note for note in result.notes)


def test_a_disk_that_takes_nothing_is_said(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server()
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("the system has no /dev/full")
    popen = subprocess.Popen

    def start(*arguments, **options):  # type: ignore[no-untyped-def]
        folder = Path(options["cwd"])
        for name in ("rows-0.bin", "state-0.tmp"):
            (folder / name).symlink_to(full)
        return popen(*arguments, **options)

    monkeypatch.setattr("bench.load.run.subprocess.Popen", start)
    with pytest.raises(StorageError, match="No space left"):
        run_load(LoadPlan(url=server.url, shape=constant(50, 1), warm_up_requests=0))


def test_too_few_open_files_are_the_generators_fault(start_server: StartServer, tmp_path: Path) -> None:
    run_limited(start_server(delay_ms=1500), tmp_path, "RLIMIT_NOFILE", 60, rate=80, seconds=1.5)
    result = LoadResult.load(tmp_path)
    assert {failure.name for failure in result.failures} == {"generator"}
    assert result.num_ok > 10
    assert "Too many open files" in result.why_not_kept


def test_headers_are_in_no_file_and_no_argument(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(fault="503", every=5)
    script = (
        f"from pathlib import Path; from bench.load import *\n"
        f"run_load(LoadPlan(url={server.url!r}, shape=constant(40, 30), processes=2,"
        f" headers={{'Authorization': 'Bearer ' + Path({str(tmp_path / 'key')!r}).read_text()}}))"
    )
    (tmp_path / "key").write_text(SECRET)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=dict(os.environ) | {"TMPDIR": str(scratch)}
    )
    server.wait_for(60)
    children = psutil.Process(process.pid).children(recursive=True)
    said = [" ".join(child.cmdline()) + str(child.environ()) for child in children]
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=10)
    files = [path for path in scratch.rglob("*") if path.is_file()]
    assert files  # a kill leaves what was recorded
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    assert said
    assert SECRET not in "".join(said)
