from __future__ import annotations

import json
import stat
from functools import partial
from pathlib import Path

import pytest

from edgesmith.errors import StorageError
from serve.traffic.recorder import Recorder


def lines(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_come_in_order_and_others_cannot_read_them(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.touch(0o644)
    recorder = Recorder(path, max_bytes=1 << 20)
    for number in range(3000):
        recorder.put(partial(dict, n=number))
    recorder.close()
    assert lines(path) == [{"n": number} for number in range(3000)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (recorder.num_lines, recorder.num_dropped, recorder.failure) == (3000, 0, "")


def test_a_recording_is_continued(tmp_path: Path) -> None:
    for number in range(2):
        recorder = Recorder(tmp_path / "r", max_bytes=1 << 20)
        recorder.put(partial(dict, n=number))
        recorder.close()
        recorder.close()
    assert lines(tmp_path / "r") == [{"n": 0}, {"n": 1}]


def test_files_never_grow_beyond_their_limit(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", max_bytes=100)
    for number in range(50):
        recorder.put(partial(dict, n=number))
        recorder.flush()
    recorder.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r", "r.1"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    kept = [one["n"] for one in lines(tmp_path / "r.1") + lines(tmp_path / "r")]
    assert kept == list(range(kept[0], 50))


def test_a_full_disk_ends_the_recording_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(Path("/dev/full"), max_bytes=1 << 20)
    mode = Path("/dev/full").stat().st_mode
    for number in range(5):
        recorder.put(partial(dict, n=number))
        recorder.flush()
    recorder.close()
    assert "No space left on device" in recorder.failure
    assert recorder.num_dropped == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"recording has stopped, answering goes on: {recorder.failure}"
    ]
    assert Path("/dev/full").stat().st_mode == mode


def test_lines_beyond_what_may_wait_are_dropped_and_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", max_bytes=1 << 30)
    for number in range(20_000):
        recorder.put(partial(dict, n=number))
    recorder.close()
    assert recorder.num_dropped > 0
    assert recorder.num_lines + recorder.num_dropped == 20_000


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "aim").write_text("kept")
    (tmp_path / "r").symlink_to(tmp_path / "aim")
    with pytest.raises(StorageError, match=str(tmp_path / "r")):
        Recorder(tmp_path / "r", max_bytes=100)
    assert (tmp_path / "aim").read_text() == "kept"


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        Recorder(tmp_path / "missing" / "r", max_bytes=100)


def test_a_line_that_cannot_be_made_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, int]:
        raise ValueError("not to be made")

    recorder = Recorder(tmp_path / "r", max_bytes=1 << 20)
    for number in range(3):
        recorder.put(partial(dict, n=number))
        recorder.put(broken)
    recorder.close()
    assert lines(tmp_path / "r") == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert (recorder.num_lines, recorder.num_dropped, recorder.failure) == (3, 3, "")
    assert len(caplog.records) == 1


def test_recording_goes_on_when_there_is_room_and_says_what_is_missing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "r"
    recorder = Recorder(path, max_bytes=1 << 20, retry_s=0.0)
    recorder.put(partial(dict, n=0))
    recorder.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, before[1]))
    try:
        for number in (1, 2, 3):
            recorder.put(partial(dict, n=number))
            recorder.flush()
        assert recorder.failure
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorder.flush()
    recorder.put(partial(dict, n=4))
    recorder.close()
    first, gap, last = (json.loads(line) for line in path.read_text().splitlines())
    assert (first, last) == ({"n": 0}, {"n": 4})
    assert (gap["kind"], gap["lost"]) == ("gap", 3)
    assert "File too large" in gap["reason"]
    assert (recorder.num_dropped, recorder.num_gaps, recorder.failure) == (3, 1, "")
