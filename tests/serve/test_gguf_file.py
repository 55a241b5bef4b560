"""Our reader of GGUF files takes sound ones and refuses hostile ones with the numbers."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import ArtifactError, EdgesmithError, UnsupportedError
from serve.runtime.gguf_file import BLOCK_TYPES, GgufArray, read_gguf

F32, Q8_0, STRING, ARRAY, U32, BOOL = 0, 8, 8, 9, 4, 7


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int, offset: int, *, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
TENSOR = info("a.weight", (4, 2), F32, 0)


def build(
    pairs: tuple[bytes, ...] = (ARCHITECTURE,),
    infos: tuple[bytes, ...] = (TENSOR,),
    data: bytes = bytes(32),
    **counts: Any,
) -> bytes:
    num_tensors, num_keys = counts.get("num_tensors", len(infos)), counts.get("num_keys", len(pairs))
    head = counts.get("magic", b"GGUF") + struct.pack("<IQQ", counts.get("version", 3), num_tensors, num_keys)
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % counts.get("alignment", 32)) + data


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    words = struct.pack("<IQ", STRING, 2) + text("a") + text(b"\xff")
    numbers = struct.pack("<IQ3f", 6, 3, 1, 2, 3)
    pairs = (
        ARCHITECTURE,
        pair("llama.context_length", U32, struct.pack("<I", 512)),
        pair("flag", BOOL, b"\1"),
        pair("words", ARRAY, words),
        pair("numbers", ARRAY, numbers),
    )
    infos = (info("a", (3,), F32, 0), info("b", (32, 2), Q8_0, 32))
    found = read_gguf(write(tmp_path, build(pairs, infos, bytes(32 + 68))))
    assert (found.version, found.architecture, found.setting("context_length")) == (3, "llama", 512)
    assert found.metadata["flag"] is True
    assert found.metadata["words"] == GgufArray(STRING, 2)
    assert found.tensors["b"].size_bytes == 68
    assert found.tensors["b"].start == found.tensors["a"].start + 32


def test_a_file_of_the_reference_writer_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    writer.add_custom_alignment(64)
    values = np.arange(10, dtype=np.float32)
    writer.add_tensor("x", values)
    writer.add_tensor("y", values.reshape(5, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    assert found.tensors["y"].shape == (2, 5)
    start = found.tensors["y"].start
    assert path.read_bytes()[start : start + 40] == values.tobytes()
    assert start % 64 == 0


def test_block_sizes_are_those_of_the_reference() -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}
    assert {number: tuple(block) for number, block in BLOCK_TYPES.items() if block.name != "Q8_1"} == sizes


HUGE = (1 << 64) - 1
HOSTILE: dict[str, tuple[bytes, str]] = {
    "other magic": (build(magic=b"GGML"), "does not start with GGUF"),
    "negative tensor count": (build(num_tensors=HUGE), "18,446,744,073,709,551,615 tensors, the limit is 65,536"),
    "absurd key count": (build(num_keys=1 << 40), "1,099,511,627,776 keys"),
    "more keys than there are": (build(num_keys=9), "bytes"),
    "key length that overflows": (build((struct.pack("<Q", HUGE - 7),)), "bytes for a key"),
    "key longer than the file": (build((struct.pack("<Q", 60_000),), ()), "claims 60,000 bytes where"),
    "string over the limit": (
        build((ARCHITECTURE, pair("x", STRING, struct.pack("<Q", 1 << 30)))),
        "1,073,741,824 bytes for the value of 'x'",
    ),
    "array that overflows": (
        build((ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQ", 10, 1 << 61)))),
        "2,305,843,009,213,693,952 elements in 'x'",
    ),
    "array longer than the file": (
        build((ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQ", 10, 1 << 20)))),
        "'x' claims 8,388,608 bytes",
    ),
    "string in an array that overflows": (
        build((ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQQ", STRING, 1, HUGE)))),
        "element 0 of 'x' claims 18,446,744,073,709,551,615 bytes",
    ),
    "array of arrays": (build((ARCHITECTURE, pair("x", ARRAY, struct.pack("<IQ", ARRAY, 1)))), "array of the type 9"),
    "unknown value type": (build((ARCHITECTURE, pair("x", 99, b""))), "'x' has the unknown type 99"),
    "bool of 2": (build((ARCHITECTURE, pair("x", BOOL, b"\2"))), "neither true nor false but 2"),
    "duplicate key": (build((ARCHITECTURE, ARCHITECTURE)), "'general.architecture' appears twice"),
    "key that is no text": (build((ARCHITECTURE, pair(b"\xff", BOOL, b"\1"))), "can't decode"),
    "no architecture": (build(()), r"general\.architecture is missing"),
    "architecture that is no text": (
        build((pair("general.architecture", U32, bytes(4)),)),
        r"general\.architecture is missing or no text",
    ),
    "alignment of 0": (build((ARCHITECTURE, pair("general.alignment", U32, bytes(4)))), "the alignment is 0"),
    "alignment of 48": (
        build((ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 48)))),
        "the alignment is 48",
    ),
    "no dimensions": (build(infos=(info("a", (), F32, 0),)), "has 0 dimensions"),
    "absurd dimensions": (build(infos=(info("a", (1,), F32, 0, dimensions=1 << 30),)), "1,073,741,824 dimensions"),
    "negative size": (build(infos=(info("a", (HUGE, 2), F32, 0),)), "impossible shape"),
    "size of zero": (build(infos=(info("a", (0, 2), F32, 0),)), "impossible shape"),
    "product that overflows": (build(infos=(info("a", (1 << 31, 1 << 31, 4), F32, 0),)), "impossible shape"),
    "unknown tensor type": (build(infos=(info("a", (4,), 77, 0),)), "unknown type 77"),
    "type that was given up": (build(infos=(info("a", (4,), 4, 0),)), "unknown type 4"),
    "row that is no multiple of a block": (build(infos=(info("a", (33,), Q8_0, 0),)), "33 values, Q8_0 needs"),
    "name too long": (build(infos=(info("a" * 64, (4,), F32, 0),)), "64 bytes for the name of a tensor"),
    "duplicate tensor": (build(infos=(TENSOR, info("a.weight", (4, 2), F32, 32)), data=bytes(64)), "appears twice"),
    "overlapping tensors": (build(infos=(TENSOR, info("b", (4, 2), F32, 0)), data=bytes(64)), "expected 32"),
    "tensor that is not aligned": (build(infos=(TENSOR, info("b", (1,), F32, 33)), data=bytes(64)), "expected 32"),
    "tensor outside the file": (build(infos=(info("a", (1 << 20,), F32, 0),)), "truncated"),
    "offset that overflows": (build(infos=(info("a", (4,), F32, HUGE - 31),)), "expected 0"),
    "truncated data": (build(data=bytes(31)), "truncated"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_with_the_numbers(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(ArtifactError, match=message):
        read_gguf(write(tmp_path, content))


TEMPLATES: dict[str, tuple[str, str]] = {
    "escapes": ("{{ ''.__class__.__mro__ }}", "hostile: it reaches for '__mro__'"),
    "escapes while it runs": ("{{ messages|attr('__cla' ~ 'ss__') }}", "hostile: it reaches for '__class__' of a list"),
    "works without end": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
    "reads files": ("{% include '/etc/passwd' %}", "hostile: it uses include"),
    "is damaged": ("{% for %}", "damaged in line 1"),
    "is too long": ("x" * 300_000, "longer than 262,144 bytes"),
}


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"])
@pytest.mark.parametrize("case", TEMPLATES)
def test_a_hostile_chat_template_is_refused(case: str, key: str, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed: nothing could render it")
    template, message = TEMPLATES[case]
    with pytest.raises(ArtifactError, match=f"model.gguf: is no GGUF file, or is damaged: .*{message}"):
        read_gguf(write(tmp_path, build((ARCHITECTURE, pair(key, STRING, text(template))))))


def test_a_sound_chat_template_is_kept(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    found = read_gguf(write(tmp_path, build((ARCHITECTURE, pair("tokenizer.chat_template", STRING, text(template))))))
    assert found.metadata["tokenizer.chat_template"] == template


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (build(version=1), "GGUF version 1"),
        (build(version=3 << 24), "most significant byte first"),
        (build((ARCHITECTURE, pair("split.count", 2, struct.pack("<H", 4)))), "one of 4 parts"),
    ],
)
def test_another_kind_of_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_gguf(write(tmp_path, content))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is empty"):
        read_gguf(write(tmp_path, b""))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    words = struct.pack("<IQ", STRING, 2) + text("one") + text("two")
    content = build((ARCHITECTURE, pair("words", ARRAY, words)))
    for size in range(1, len(content)):
        with pytest.raises(ArtifactError):
            read_gguf(write(tmp_path, content[:size]))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 200), value=st.binary(min_size=1, max_size=9))
def test_no_damage_ends_in_another_error(tmp_path_factory: pytest.TempPathFactory, position: int, value: bytes) -> None:
    words = struct.pack("<IQ", STRING, 2) + text("one") + text("two")
    content = bytearray(build((ARCHITECTURE, pair("words", ARRAY, words))))
    position %= len(content)
    content[position : position + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    with suppress(EdgesmithError):
        read_gguf(path)
