"""The store gives whole entries or none, whoever asks and whatever is killed."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgesmith.artifact import Artifact, open_artifact, write_artifact
from edgesmith.errors import StorageError
from edgesmith.store import StepKey, Store, code_digest

KEY = StepKey(step="merge", module="edgesmith.files", options={"a": 1}, inputs={"base": "x"}, libraries=("numpy",))

# Builds one entry of many files, slowly enough to be killed in the middle, and prints its digest.
BUILDER = """
import sys, time
from pathlib import Path
from edgesmith.artifact import write_artifact
from edgesmith.store import StepKey, Store
def make(folder):
    with open(sys.argv[2], "a") as log: log.write("x")
    for number in range(20):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 50_000)
        time.sleep(0.005)
    return write_artifact(folder, kind="evidence", step="s")
key = StepKey(step="s", module="edgesmith.files", options={}, inputs={}, libraries=())
print("ready", flush=True)
print(Store(Path(sys.argv[1])).build(key, make).digest)
"""


def make(folder: Path) -> Artifact:
    (folder / "a.bin").write_bytes(b"content")
    return write_artifact(folder, kind="evidence", step="merge")


def start_builder(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(root), str(root.parent / "log")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_second_build_does_no_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.build(KEY, make)
    second = store.build(KEY, lambda folder: pytest.fail("made again"))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "other",
    [
        {"options": {"a": 2}},
        {"inputs": {"base": "y"}},
        {"inputs": {"other": "x"}},
        {"step": "export"},
        {"module": "edgesmith.store"},
        {"libraries": ("numpy", "pydantic")},
    ],
)
def test_key_depends_on_everything(other: dict[str, object]) -> None:
    changed = StepKey(**{**KEY.__dict__, **other})  # type: ignore[arg-type]
    assert changed.digest != KEY.digest


def test_code_digest_sees_a_change_in_an_imported_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of the stage covers what it imports inside functions."""
    script = "from edgesmith.store import code_digest; print(code_digest('edgesmith.cli'))"
    for folder in ("before", "after"):
        source = Path(__file__).parents[2] / "edgesmith"
        shutil.copytree(source, tmp_path / folder / "edgesmith", ignore=shutil.ignore_patterns("__pycache__"))
    console = tmp_path / "after" / "edgesmith" / "console.py"
    console.write_text(console.read_text() + "# changed\n")
    digests = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path / folder, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        for folder in ("before", "after")
    ]
    assert digests[0] != digests[1]


def test_code_digest_leaves_out_what_is_not_imported() -> None:
    assert code_digest("edgesmith.errors") != code_digest("edgesmith.files")


def test_damaged_entry_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.build(KEY, make)
    entry.file("a.bin").write_bytes(b"CONTENT")
    assert store.find(KEY) is None
    assert store.build(KEY, make).file("a.bin").read_bytes() == b"content"


def test_entry_without_its_manifest_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.build(KEY, make)
    (entry.path / "manifest.json").unlink()
    (entry.path / "config.json").write_text("{}")  # what a found checkpoint would look like
    (entry.path / "a.bin").write_bytes(b"evil")
    assert store.find(KEY) is None
    assert store.build(KEY, make).file("a.bin").read_bytes() == b"content"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> Artifact:
        (folder / "half.bin").write_bytes(b"half")
        raise ValueError("no")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no"):
        store.build(KEY, fail)
    assert store.find(KEY) is None
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_process_left_of_another_key_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with start_builder(root) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        while not list(root.glob("work/*/*")):
            time.sleep(0.001)
        Store(root).build(KEY, make)
        assert list(root.glob("work/*"))  # the live one's stays
        builder.kill()
    Store(root).forget(KEY)
    Store(root).build(KEY, make)
    assert not list(root.glob("work/*"))


def test_unwritable_store_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        Store(tmp_path / "file").build(KEY, make)


def test_two_processes_do_the_work_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    builders = [start_builder(root) for _ in range(4)]
    digests = {builder.communicate(timeout=60)[0].split()[-1] for builder in builders}
    assert len(digests) == 1
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.slow
def test_killed_builders_leave_a_store_that_finishes(tmp_path: Path) -> None:
    root, chance = tmp_path / "store", random.Random(0)
    killed = 0
    for _ in range(50):
        with start_builder(root) as builder:
            assert builder.stdout is not None
            assert builder.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.2))
            builder.send_signal(signal.SIGKILL)
            killed += builder.wait() == -signal.SIGKILL
        for entry in root.glob("entries/*"):
            open_artifact(entry)  # never half an entry
            shutil.rmtree(entry)  # begin anew, so that many kills hit a build
    assert killed > 10
    finisher = start_builder(root)
    assert finisher.communicate(timeout=60)[0].split()[-1].startswith("sha256:")
    assert list(root.glob("work/*")) == []
