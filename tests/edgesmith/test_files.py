"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgesmith.errors import StorageError
from edgesmith.files import atomic_write, copy_tree, publish_folder, sha256_file, temporary_sibling


def test_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a")
    first = sha256_file(path)
    path.write_bytes(b"b")
    assert first != sha256_file(path)
    assert first == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_atomic_write_replaces_and_leaves_no_other_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "f", "one")
    atomic_write(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_publish_replaces_a_folder(tmp_path: Path) -> None:
    for text in ("one", "two"):
        work = tmp_path / "work"
        work.mkdir()
        (work / text).write_text(text)
        publish_folder(work, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "two"]


def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path: Path) -> None:
    """Another process looks as fast as it can while a folder is replaced over and over."""
    watch = "import os, sys\nwhile os.path.exists(sys.argv[1] + '/go'): assert os.path.exists(sys.argv[1] + '/out/f')"
    (tmp_path / "go").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").touch()
    with subprocess.Popen([sys.executable, "-c", watch, str(tmp_path)]) as watcher:
        for _ in range(200):
            work = temporary_sibling(tmp_path / "out")
            work.mkdir()
            (work / "f").touch()
            publish_folder(work, tmp_path / "out")
        (tmp_path / "go").unlink()
        assert watcher.wait(timeout=30) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_remains_of_a_killed_process_are_cleared_and_those_of_a_live_one_kept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = temporary_sibling(tmp_path / "out")
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{int(done.stdout)}."))
    elsewhere = tmp_path / f".out.0123456789ab.{int(done.stdout)}.abcd.tmp"  # of another host
    for folder in (mine, dead, elsewhere):
        folder.mkdir()
    temporary_sibling(tmp_path / "out")
    assert not dead.exists()
    assert mine.exists()
    assert elsewhere.exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small tmpfs needs root on Linux")
def test_full_disk_is_a_storage_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(b"x" * 2_000_000)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this container may not mount a tmpfs")
    try:
        atomic_write(disk / "kept", "kept")
        for write in (lambda: atomic_write(disk / "kept", b"x" * 2_000_000), lambda: copy_tree(source, disk / "out")):
            with pytest.raises(StorageError, match="No space left on device") as caught:
                write()
            assert "Free disk space" in caught.value.mend
        assert [path.name for path in disk.iterdir()] == ["kept"]
        assert (disk / "kept").read_text() == "kept"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
