"""Importance matrices as files: what comes back, what llama.cpp's package reads, what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from compress.gguf.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from edgesmith.errors import ArtifactError, UsageError


def entry(num_experts: int, width: int, *, count: float = 10, seed: int = 0) -> ImatrixEntry:
    random = np.random.default_rng(seed)
    return ImatrixEntry(random.random((num_experts, width)).astype(np.float32), np.full(num_experts, count))


@pytest.fixture
def matrix() -> Imatrix:
    return Imatrix(
        entries={"blk.0.ffn_up.weight": entry(1, 7), "blk.0.ffn_down_exps.weight": entry(3, 5)},
        datasets=("novel.txt", "Ωμέγα"),
        num_windows=4,
        window_length=512,
    )


def test_what_is_written_comes_back(matrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix)
    found = read_imatrix(path)
    assert (found.datasets, found.num_windows, found.window_length) == (("novel.txt", "Ωμέγα"), 4, 512)
    assert list(found.entries) == sorted(matrix.entries)
    for name, expected in matrix.entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, expected.sums)
        np.testing.assert_array_equal(found.entries[name].counts, expected.counts)
    again = tmp_path / "again.gguf"
    write_imatrix(again, found)
    assert again.read_bytes() == path.read_bytes()


def test_the_gguf_package_reads_what_the_format_describes(matrix: Imatrix, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "imatrix.gguf", matrix)
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["novel.txt", "Ωμέγα"]
    assert (reader.fields["imatrix.chunk_count"].contents(), reader.fields["imatrix.chunk_size"].contents()) == (4, 512)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    sums = tensors["blk.0.ffn_down_exps.weight.in_sum2"]
    assert list(sums.shape) == [5, 3]
    np.testing.assert_array_equal(sums.data, matrix.entries["blk.0.ffn_down_exps.weight"].sums)
    assert list(tensors["blk.0.ffn_down_exps.weight.counts"].shape) == [1, 3]
    assert tensors["blk.0.ffn_up.weight.counts"].data.reshape(-1).tolist() == [10]


def test_a_matrix_with_sums_that_llama_cpp_adds_is_read(tmp_path: Path) -> None:
    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def add_architecture(self) -> None:
            """An importance matrix has none."""

    writer = Writer(tmp_path / "theirs.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    for kind, shape in (("in_sum", (1, 4)), ("in_sum2", (1, 4)), ("counts", (1, 1))):
        writer.add_tensor(f"output.weight.{kind}", np.full(shape, 8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "theirs.gguf")
    assert found.entries["output.weight"].means().tolist() == [1, 1, 1, 1]


def legacy(*, count: int = 1, name: bytes = b"blk.0.attn_q.weight", values: tuple[float, ...] = (2.0, 6.0)) -> bytes:
    head = struct.pack("<ii", count, len(name)) + name
    return head + struct.pack(f"<ii{len(values)}f", 2, len(values), *values) + struct.pack("<ii", 2, 5) + b"a.txt"


def test_the_older_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy())
    found = read_imatrix(path)
    assert found.entries["blk.0.attn_q.weight"].means().tolist() == [1, 3]  # means times windows are stored
    assert (found.datasets, found.num_windows, found.num_tokens) == (("a.txt",), 2, 1024)
    path.write_bytes(legacy()[: -len(struct.pack("<ii", 2, 5) + b"a.txt")])  # still older: no dataset
    assert read_imatrix(path).datasets == ()


def test_every_truncation_is_refused(matrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix)
    content = path.read_bytes()
    end = content.rindex(np.float32(10).tobytes()) + 4  # what follows is padding
    for size in range(0, end, 3):
        path.write_bytes(content[:size])
        with pytest.raises(ArtifactError, match="no importance matrix, or is damaged"):
            read_imatrix(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "claims 4 bytes"),
        (legacy(count=-1), "-1 entries"),
        (legacy(count=1 << 30), "1,073,741,824 entries"),
        (legacy(count=2), "limit|claims|empty"),
        (legacy(values=(1.0, float("nan"))), "NaN"),
        (legacy(values=(1.0, -1.0)), "negative"),
        (legacy(name=b"\xff\xfe"), "utf-8"),
        (legacy() + b"x", "1 bytes are left over"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "4,611,686,018,427,387,904 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "keys"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.type is None"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "bytes of text"),
    ],
)
def test_hostile_bytes_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason):
        read_imatrix(path)


def test_a_model_is_no_importance_matrix(fitting_model: Path) -> None:
    with pytest.raises(ArtifactError, match=r"general\.type is None, not 'imatrix'"):
        read_imatrix(fitting_model)


def test_counts_that_do_not_belong_to_the_sums_are_refused(matrix: Imatrix, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, matrix)
    path.write_bytes(path.read_bytes().replace(b"ffn_up.weight.counts", b"ffn_xx.weight.counts"))
    with pytest.raises(ArtifactError, match=r"ffn_up\.weight' has sums of shape \[1, 7\] and counts of shape \[0, 0\]"):
        read_imatrix(path)


def test_an_expert_that_saw_nothing_weighs_all_inputs_alike() -> None:
    found = ImatrixEntry(np.array([[4.0, 8.0], [0.0, 0.0]]), np.array([4.0, 0.0])).means()
    assert found.tolist() == [1, 2, 1, 1]


def test_names_too_long_for_the_format_are_refused(tmp_path: Path) -> None:
    matrix = Imatrix(entries={"x" * 60: entry(1, 2)})
    with pytest.raises(UsageError, match="longer than the 63 bytes"):
        write_imatrix(tmp_path / "imatrix.gguf", matrix)
    assert list(tmp_path.iterdir()) == []
