from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.artifact import Artifact, Signature, open_artifact
from edgesmith.errors import ArtifactError
from serve.runtime import open_engine
from serve.runtime.golden import check_golden, read_golden, write_golden
from tests.serve.models_built import affine, save, write

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X @ np.arange(12, dtype=np.float32).reshape(4, 3) + 1


class Fixed:
    """An engine that always gives the same."""

    name = "fixed"
    signature = Signature(inputs=(), outputs=())

    def __init__(self, outputs: Mapping[str, Any]) -> None:
        self.outputs = dict(outputs)

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return self.outputs

    def close(self) -> None: ...


def _artifact(folder: Path, tolerance: float = 1e-3, **arrays: Any) -> Artifact:
    save(affine(), folder / "model.onnx")
    inputs, outputs = arrays.get("inputs", {"x": X}), arrays.get("outputs", {"y": Y})
    write_golden(folder, inputs=inputs, outputs=outputs, max_abs_difference=tolerance, texts=["a", ("b", "c")])
    return write(folder)


def test_engine_that_agrees_passes(tmp_path: Path) -> None:
    artifact = _artifact(tmp_path)
    check = check_golden(artifact, open_engine(artifact))
    assert check is not None
    assert check.passed
    assert (check.num_rows, check.reason) == (2, "")
    assert check.max_abs_difference < 1e-5


def test_written_vectors_are_read_back(tmp_path: Path) -> None:
    golden = read_golden(_artifact(tmp_path))
    assert golden is not None
    assert golden.texts == ("a", ("b", "c"))
    assert golden.max_abs_difference == 1e-3
    np.testing.assert_array_equal(golden.inputs["x"], X)
    np.testing.assert_array_equal(golden.outputs["y"], Y)


def test_same_vectors_are_the_same_bytes(tmp_path: Path) -> None:
    one, two = _artifact(tmp_path / "one"), _artifact(tmp_path / "two")
    assert one.digest == two.digest


def test_arrays_that_are_not_contiguous_are_written_whole(tmp_path: Path) -> None:
    golden = read_golden(_artifact(tmp_path, inputs={"x": X.T.copy().T[:, ::-1]}))
    assert golden is not None
    np.testing.assert_array_equal(golden.inputs["x"], X[:, ::-1])


@pytest.mark.parametrize(
    ("outputs", "difference", "reason"),
    [
        ({"y": Y + np.float32(0.5)}, 0.5, "off by 0.5, more than the 0.001 allowed"),
        ({"y": Y[:, :2]}, np.inf, r"output 'y' has shape \[2, 2\], not \[2, 3\]"),
        ({"z": Y}, np.inf, "output 'y' is missing"),
        ({"y": np.where(Y > 100, np.nan, Y)}, np.inf, "output 'y' is not finite"),
    ],
)
def test_engine_that_differs_fails_with_the_reason(
    tmp_path: Path, outputs: dict[str, Any], difference: float, reason: str
) -> None:
    check = check_golden(_artifact(tmp_path), Fixed(outputs))
    assert check is not None
    assert not check.passed
    assert check.max_abs_difference == pytest.approx(difference, abs=1e-5)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(check.reason)


def test_states_of_padding_are_not_compared(tmp_path: Path) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1]], np.int64)
    states = np.ones((2, 3, 4), np.float32)
    artifact = _artifact(tmp_path, inputs={"attention_mask": mask}, outputs={"states": states})
    padded, real = states.copy(), states.copy()
    padded[0, 2] = np.nan
    real[1, 2, 3] = 2
    for outputs, passed in ((padded, True), (real, False)):
        check = check_golden(artifact, Fixed({"states": outputs}))
        assert check is not None
        assert check.passed is passed


def test_model_without_golden_vectors_is_not_said_to_pass(tmp_path: Path) -> None:
    path = save(affine(), tmp_path / "model.onnx")
    artifact = open_artifact(path)
    assert check_golden(artifact, open_engine(artifact)) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("golden.safetensors", b""),
        ("golden.safetensors", b"\xff" * 40),
        ("golden.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"),
        ("golden.json", b"{"),
        ("golden.json", json.dumps({"max_abs_difference": -1.0, "texts": []}).encode()),
        ("golden.json", b'{"max_abs_difference": Infinity, "texts": []}'),
        ("golden.json", json.dumps({"max_abs_difference": 1.0, "texts": [], "schema_version": 2}).encode()),
    ],
)
def test_damaged_vectors_are_a_typed_error(tmp_path: Path, name: str, content: bytes) -> None:
    _artifact(tmp_path)
    (tmp_path / "golden" / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        read_golden(write(tmp_path))
