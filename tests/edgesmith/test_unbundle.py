"""Bundles come from anywhere: what is unpacked is what was packed, or nothing is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bench.sizes.footprint import measure_footprint
from edgesmith.artifact import open_artifact, write_artifact
from edgesmith.bundle import write_bundle
from edgesmith.errors import ArtifactError, StorageError, UsageError
from edgesmith.unbundle import unpack_bundle

Tree = Mapping[str, bytes]


def tree(folder: Path) -> Tree:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An artifact with compressible weights, and a file in a folder whose path is longer than a tar's field."""
    folder: Path = tmp_path_factory.mktemp("model") / "news"
    (folder / "golden").mkdir(parents=True)
    codes = np.random.default_rng(0).integers(-7, 8, 400_000).astype(np.int8)
    (folder / "model.onnx").write_bytes(codes.tobytes())
    (folder / "golden" / f"{'long-' * 30}name.json").write_text("{}")
    write_artifact(folder, kind="onnx", step="test")
    return folder


@pytest.fixture(scope="module")
def box(model: Path, tmp_path_factory) -> Path:
    return write_bundle({"news": model}, tmp_path_factory.mktemp("box") / "box.tar.zst", with_runtime=False).path


@pytest.mark.parametrize("ending", [".tar.zst", ".tar.gz", ".tar"])
def test_what_was_packed_comes_out_to_the_byte(ending: str, model: Path, tmp_path: Path):
    models = {"news": model, "news:2": model}
    made = write_bundle(models, tmp_path / f"box{ending}", with_runtime=False)
    folder = write_bundle(models, tmp_path / "folder", with_runtime=False)
    done = unpack_bundle(made.path, tmp_path / "out")
    assert tree(done.path) == tree(folder.path)
    assert done.unpacked_bytes == made.unpacked_bytes == folder.size_bytes
    assert done.archive_bytes == made.size_bytes
    assert done.models == ("news:1", "news:2")
    assert open_artifact(done.path / "models" / "news" / "2").digest == open_artifact(model).digest


def test_the_name_of_an_archive_does_not_decide_how_it_is_read(box: Path, tmp_path: Path):
    (tmp_path / "box.tar.gz").write_bytes(box.read_bytes())
    assert unpack_bundle(tmp_path / "box.tar.gz", tmp_path / "out").models == ("news:1",)


def test_the_same_models_give_the_same_archive_wherever_and_whenever(box: Path, model: Path, tmp_path: Path):
    again = write_bundle({"news": model}, tmp_path / "elsewhere" / "box.tar.zst", with_runtime=False)
    assert again.path.read_bytes() == box.read_bytes()
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(box.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    first, *rest = [member.name for member in members]
    assert first == "box/bundle.json"
    assert rest == sorted(rest)
    assert {(one.mtime, one.uid, one.gid, one.uname, one.mode) for one in members} == {(0, 0, 0, "", 0o644)}


def test_the_tools_of_every_system_open_it(box: Path, tmp_path: Path):
    subprocess.run(["tar", "--zstd", "-C", str(tmp_path), "-xf", str(box)], check=True)
    assert tree(tmp_path / "box") == tree(unpack_bundle(box, tmp_path / "out").path)


def test_the_download_of_an_artifact_is_its_bundle_to_the_byte(model: Path, tmp_path: Path):
    made = write_bundle({"model": model}, tmp_path / "model.tar.zst", with_runtime=False)
    assert measure_footprint(open_artifact(model)).download_bytes == made.size_bytes == made.path.stat().st_size
    assert made.size_bytes < 0.55 * made.unpacked_bytes  # 15 codes are 3.9 of 8 bits


def test_a_second_version_costs_only_what_differs(model: Path, box: Path, tmp_path: Path):
    both = write_bundle({"news:1": model, "news:2": model}, tmp_path / "box.tar.zst", with_runtime=False)
    assert both.size_bytes < 1.02 * box.stat().st_size


def refused(archive: Path, out: Path, match: str) -> None:
    with pytest.raises(ArtifactError, match=match):
        unpack_bundle(archive, out)
    assert not out.exists()
    assert not list(out.parent.glob(".out.*"))


@pytest.mark.parametrize("ending", [".tar.zst", ".tar.gz", ".tar"])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_a_copy_that_was_cut_short_is_refused(ending: str, share: float, model: Path, tmp_path: Path):
    made = write_bundle({"news": model}, tmp_path / f"box{ending}", with_runtime=False)
    content = made.path.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "cut", tmp_path / "out", "cut short|no bundle")


@pytest.mark.parametrize("ending", [".tar.zst", ".tar.gz", ".tar"])
def test_a_flipped_bit_anywhere_is_refused_or_harmless(ending: str, model: Path, box: Path, tmp_path: Path):
    made = write_bundle({"news": model}, tmp_path / f"box{ending}", with_runtime=False)
    content, expected = made.path.read_bytes(), tree(unpack_bundle(box, tmp_path / "whole").path)
    for position in np.random.default_rng(1).integers(0, len(content), 25):
        broken = bytearray(content)
        broken[position] ^= 1 << int(position) % 8
        (tmp_path / "broken").write_bytes(broken)
        try:
            assert tree(unpack_bundle(tmp_path / "broken", tmp_path / "out").path) == expected
        except ArtifactError:
            assert not (tmp_path / "whole" / "out").exists()


Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def index_of(files: Tree, models: list[dict[str, str]] | None = None) -> Member:
    listed = [
        {"path": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    index = {"schema_version": 1, "models": models or [], "files": listed}
    return plain("box/bundle.json", json.dumps(index).encode())


def archive_of(path: Path, *members: Member) -> Path:
    with gzip.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


HOSTILE: dict[str, tuple[Callable[[], list[Member]], str]] = {
    "path outside": (lambda: [index_of({"a": b""}), plain("box/../a")], "leads out of its folder"),
    "absolute path": (lambda: [index_of({"a": b""}), plain("/box/a")], "leads out of its folder"),
    "path outside in the index": (lambda: [index_of({"../a": b"x"}), plain("box/../a", b"x")], "is damaged at files.0"),
    "another root": (lambda: [index_of({"a": b""}), plain("other/a")], "is not inside the folder 'box'"),
    "link": (
        lambda: [index_of({"a": b""}), plain("box/a", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "a link, a device",
    ),
    "hard link": (lambda: [index_of({"a": b""}), plain("box/a", type=tarfile.LNKTYPE, linkname="b")], "a link"),
    "device": (lambda: [index_of({"a": b""}), plain("box/a", type=tarfile.CHRTYPE)], "a link, a device"),
    "pipe": (lambda: [index_of({"a": b""}), plain("box/a", type=tarfile.FIFOTYPE)], "a link, a device"),
    "no index": (lambda: [plain("box/a", b"x")], "is no bundle: it begins with 'a'"),
    "index in another place": (lambda: [plain("box/a/bundle.json", b"{}")], "is no bundle: it begins with"),
    "index that is none": (lambda: [plain("box/bundle.json", b"[]")], "bundle.json is damaged"),
    "index of an older bundle": (lambda: [plain("box/bundle.json", b'{"schema_version": 1, "models": []}')], "files"),
    "file that nobody named": (lambda: [index_of({}), plain("box/a", b"x")], "holds 'a', which its index does not"),
    "file twice": (lambda: [index_of({"a": b"x"}), plain("box/a", b"x"), plain("box/a", b"x")], "or twice"),
    "file that is missing": (lambda: [index_of({"a": b"x", "b": b""}), plain("box/b")], "a is missing, with 1 of 2"),
    "larger than said": (lambda: [index_of({"a": b"x"}), plain("box/a", b"xy")], "has 2 bytes, but the index says 1"),
    "altered": (lambda: [index_of({"a": b"x"}), plain("box/a", b"y")], "a was altered"),
    "file that is a folder": (lambda: [index_of({"a": b"", "a/b": b""})], "names a path twice"),
    "index as a file": (lambda: [index_of({"bundle.json": b""})], "names a path twice"),
    "model that is not there": (
        lambda: [index_of({}, [{"name": "m", "version": "1", "path": "models/m/1", "digest": "sha256:0"}])],
        "has nothing of m:1",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing(name: str, tmp_path: Path):
    make, match = HOSTILE[name]
    refused(archive_of(tmp_path / "box.tar.gz", *make()), tmp_path / "out", match)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box.tar.gz"]


def test_an_index_may_not_tell_of_other_files_than_a_models_manifest(model: Path, box: Path, tmp_path: Path):
    files = dict(tree(unpack_bundle(box, tmp_path / "whole").path))
    index = json.loads(files.pop("bundle.json"))
    files["models/news/1/model.onnx"] = b"other weights"  # hashes of the index fit, those of the manifest do not
    members = [index_of(files, index["models"]), *(plain(f"box/{name}", content) for name, content in files.items())]
    refused(archive_of(tmp_path / "box.tar.gz", *members), tmp_path / "out", "is not the news:1 that was packed")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_a_header_that_inflates_without_end_is_stopped(compress: Callable[[bytes], bytes], tmp_path: Path):
    # A PAX header may be of any size, and tarfile reads it whole: 64 MiB of it here, from a file of a few kilobytes.
    info = tarfile.TarInfo("box/a")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    head = index_of({"a": b""})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(head[0], io.BytesIO(head[1]))
    start = buffer.getvalue()[: 512 + -(-len(head[1]) // 512) * 512]
    content = compress(start + info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * info.size)
    assert len(content) < 100_000
    (tmp_path / "bomb").write_bytes(content)
    refused(tmp_path / "bomb", tmp_path / "out", "holds more than its index says")


def test_an_index_that_needs_more_room_than_there_is_is_refused_first(tmp_path: Path):
    index = {
        "schema_version": 1,
        "models": [],
        "files": [{"path": "a", "size_bytes": 10**15, "sha256": "0" * 64}],
    }
    path = archive_of(tmp_path / "box.tar.gz", plain("box/bundle.json", json.dumps(index).encode()))
    with pytest.raises(StorageError, match="unpacks to 1,000,000,000,000,000 bytes"):
        unpack_bundle(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_replaced_and_nothing_else_is(box: Path, tmp_path: Path):
    unpack_bundle(box, tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("old")
    assert not (unpack_bundle(box, tmp_path / "out").path / "stale.txt").exists()
    with pytest.raises(UsageError, match="is there already and is no bundle"):
        unpack_bundle(box, tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        unpack_bundle(tmp_path / "nowhere.tar.zst", tmp_path / "other")
