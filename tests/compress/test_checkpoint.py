"""Safetensors files and checkpoint folders: what is sound is read exactly, what is not is refused, never crashed on."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from compress.checkpoint import (
    open_checkpoint,
    quantization_of,
    weights_digest,
)
from compress.checkpoint_writer import CheckpointWriter
from compress.tensor_file import TensorFile, TensorFileWriter, count_nonfinite
from edgesmith.errors import CheckpointError

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty((0, 4), dtype=torch.float16),
    "mask": torch.tensor([True, False, True]),
}
GOOD = save(TENSORS, metadata={"format": "pt"})
HEADER_END = 8 + struct.unpack("<Q", GOOD[:8])[0]


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return path


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_values_are_read_exactly_whole_and_in_pieces(tmp_path: Path) -> None:
    file = TensorFile(file_of(tmp_path, GOOD))
    assert set(file.entries) == set(TENSORS)
    assert file.metadata == {"format": "pt"}
    for name, value in TENSORS.items():
        expected = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        assert bytes(file.read(name)) == expected == b"".join(map(bytes, file.chunks(name)))
        assert file.entries[name].shape == tuple(value.shape)


def test_what_is_written_is_byte_for_byte_what_the_reference_writer_writes(tmp_path: Path) -> None:
    source = TensorFile(file_of(tmp_path, GOOD))
    specs = {name: (entry.dtype, entry.shape) for name, entry in source.entries.items()}
    with TensorFileWriter(tmp_path / "copy", specs) as writer:
        for name in sorted(specs, reverse=True):
            writer.write(name, source.chunks(name))
    assert (tmp_path / "copy").read_bytes() == GOOD


def test_a_writer_takes_every_tensor_once_and_whole(tmp_path: Path) -> None:
    specs: dict[str, tuple[str, tuple[int, ...]]] = {"a": ("F32", (2,)), "b": ("F32", (1,))}
    writer = TensorFileWriter(tmp_path / "x", specs)
    writer.write("a", [b"12345678"])
    with pytest.raises(ValueError, match="written before"):
        writer.write("a", [b"12345678"])
    with pytest.raises(ValueError, match="'b' has 3 bytes, announced were 4"):
        writer.write("b", [b"123"])
    with pytest.raises(ValueError, match=r"never written: \['b'\]"):
        writer.close()


def test_truncation_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(CheckpointError):
            TensorFile(path)


def test_truncation_of_the_data_names_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"expected {len(GOOD)} bytes, the file has {len(GOOD) - 1}"):
        TensorFile(file_of(tmp_path, GOOD[:-1]))
    with pytest.raises(CheckpointError, match=f"too long: expected {len(GOOD)} bytes, the file has {len(GOOD) + 1}"):
        TensorFile(file_of(tmp_path, GOOD + b"x"))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, HEADER_END - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_in_the_header_are_refused_or_harmless(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for position, value in flips:
        data[position] = value
    path = file_of(tmp_path, bytes(data))
    try:
        file = TensorFile(path)
    except CheckpointError:
        return
    # What we accept, the library accepts too, and sees as we do.
    try:
        loaded = load_file(path)
    except ValueError:  # it needs UTF-8 keys only, as we do, but knows fewer types
        loaded = None
    assert loaded is None or {name: tuple(value.shape) for name, value in loaded.items()} == {
        name: entry.shape for name, entry in file.entries.items()
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_noise_is_refused(tmp_path: Path, noise: bytes, framed: bool) -> None:
    with pytest.raises(CheckpointError):
        TensorFile(file_of(tmp_path, with_header(b"{" + noise, noise) if framed else noise))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "pattern"),
    [
        (struct.pack("<Q", 1 << 60), "header of 1152921504606846976 bytes"),
        (b"[1]", "does not start with '{'"),
        (b'{"a": 1', "not JSON"),
        (b'{"\xff\xff": 1}', "not JSON"),
        (b"{" * 20000, "not JSON"),
        ({"a": 7}, "exactly dtype, shape and data_offsets"),
        ({"a": ENTRY | {"more": 1}}, "exactly dtype, shape and data_offsets"),
        ({"a": ENTRY | {"dtype": "F13"}}, "unknown dtype 'F13'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"a": ENTRY | {"shape": [-2]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [2.0]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [True, True]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1] * 100}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1 << 61, 1 << 61]}}, "takes 8 bytes"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "impossible offsets"),
        ({"a": ENTRY | {"data_offsets": [0, 1 << 70]}}, "impossible offsets"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, "hole or overlap"),
        ({"a": ENTRY, "b": ENTRY}, "hole or overlap"),
        ({"a\n": ENTRY}, "is no tensor name"),
        ({"a": ENTRY, "__metadata__": {"x": 1}}, "__metadata__"),
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": 1}', "appears twice"),
    ],
)
def test_hostile_headers_are_refused(header: Any, pattern: str, tmp_path: Path) -> None:
    data = header + b"{" * 64 if isinstance(header, bytes) and len(header) == 8 else with_header(header, bytes(8))
    with pytest.raises(CheckpointError, match=pattern):
        TensorFile(file_of(tmp_path, data))


def test_values_that_are_no_numbers_are_counted_in_every_type() -> None:
    for dtype, name in (
        (torch.float32, "F32"), (torch.float64, "F64"), (torch.float16, "F16"), (torch.bfloat16, "BF16"),
        (torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2"),
        (torch.float8_e4m3fnuz, "F8_E4M3FNUZ"), (torch.float8_e5m2fnuz, "F8_E5M2FNUZ"),
    ):  # fmt: skip
        every = torch.arange(256, dtype=torch.uint8).repeat(256)
        low = torch.arange(256, dtype=torch.uint8).repeat_interleave(256)
        bits = every if name.startswith("F8") else torch.stack([low, every], 1).reshape(-1)
        values = bits[: bits.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        expected = int((~torch.isfinite(values.to(torch.float64))).sum())
        assert count_nonfinite(bytearray(values.view(torch.uint8).numpy().tobytes()), name) == expected


def checkpoint(folder: Path, *, shards: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    tensors = {f"t{index}": torch.full((4, 4), float(index)) for index in range(4)}
    if not shards:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for index in range(2):
        name = f"model-{index + 1:05d}-of-00002.safetensors"
        part = {key: tensors[key] for key in list(tensors)[2 * index : 2 * index + 2]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def edit_index(folder: Path, **changes: str | None) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    index["weight_map"] = {key: value for key, value in index["weight_map"].items() if value is not None}
    path.write_text(json.dumps(index))


def test_shards_and_one_file_have_the_same_digest(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two", shards=True)
    assert weights_digest(one) == weights_digest(two)
    with (one / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert weights_digest(one) != weights_digest(two)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.safetensors", "a/b.safetensors", "x.bin", ""])
def test_an_index_that_points_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", shards=True)
    edit_index(folder, t0=name)
    with pytest.raises(CheckpointError, match="is not the name of a safetensors file in this folder"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused_but_not_one_into_its_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder = checkpoint(snapshot, shards=True)
    shard = folder / "model-00001-of-00002.safetensors"
    blobs = tmp_path / "models--o--m" / "blobs"
    blobs.mkdir()
    shard.rename(blobs / "123")
    shard.symlink_to(blobs / "123")
    open_checkpoint(folder)
    shard.unlink()
    (blobs / "123").rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", shards=True)
    edit_index(folder, t0="model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="'t0' is not in model-00002"):
        open_checkpoint(folder)
    edit_index(folder, t0=None)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors holds 't0'"):
        open_checkpoint(folder)
    checkpoint(folder, shards=True)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: missing shard"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(CheckpointError, match="weight_map must map"):
        open_checkpoint(folder)


def test_code_of_the_checkpoint_is_refused_in_every_file_that_can_ask_for_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.T", null]}}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: asks for code of its own") as caught:
        open_checkpoint(folder)
    assert caught.value.mend
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes 4-bit"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"quantization_config": {}}, "unknown"),
    ],
)
def test_quantization_is_recognized(config: dict[str, Any], expected: str | None) -> None:
    assert quantization_of(config) == expected


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=3), max_size=6),
    st.integers(1, 100),
)
def test_what_is_written_in_shards_is_read_back(
    tmp_path: Path, shapes: dict[str, list[int]], max_shard_bytes: int
) -> None:
    for path in tmp_path.glob("model*"):
        path.unlink()
    (tmp_path / "config.json").write_text("{}")
    specs = {name: ("F32", tuple(shape)) for name, shape in shapes.items()}
    values = {name: np.full(shape, index, "<f4").tobytes() for index, (name, (_, shape)) in enumerate(specs.items())}
    writer = CheckpointWriter(tmp_path, specs, max_shard_bytes=max_shard_bytes)
    for name, value in values.items():
        writer.write(name, [value])
    writer.close()
    found = open_checkpoint(tmp_path)
    assert {name: bytes(found.read(name)) for name in found.entries} == values
