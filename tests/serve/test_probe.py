from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgesmith.artifact import open_artifact
from edgesmith.errors import UsageError
from serve.runtime.golden import write_golden
from serve.runtime.probe import peak_rss_bytes, probe
from tests.serve.models_built import affine, save, write


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve.runtime.probe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_one_json_object_is_printed(classifier_path: Path) -> None:
    done = _run(classifier_path, "--runs", "5", "--threads", "2")
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["artifact"] == open_artifact(classifier_path).digest
    assert result["engine"].startswith("onnxruntime")
    assert (result["threads"], result["num_runs"]) == (2, 5)
    assert len(result["latency_ms"]["samples"]) == len(result["cpu_ms"]["samples"]) == 5
    assert result["golden"]["passed"] is True
    assert min(result[key] for key in ("startup_cpu_ms", "verify_ms", "load_ms", "first_run_ms")) > 0
    assert 20e6 < result["peak_rss_bytes"] < 1e9


def test_peak_memory_is_that_of_the_probe_and_not_of_its_parent(classifier_path: Path) -> None:
    ballast = np.ones(60_000_000)  # 480 MB, touched
    result = json.loads(_run(classifier_path, "--runs", "1").stdout)
    assert result["peak_rss_bytes"] < ballast.nbytes
    assert peak_rss_bytes() > ballast.nbytes


def test_failed_golden_check_is_exit_code_one(tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    x = np.ones((2, 4), np.float32)
    outputs = {"y": np.full((2, 3), 1e9, np.float32)}
    write_golden(tmp_path, inputs={"x": x}, outputs=outputs, max_abs_difference=1.0, texts=[])
    write(tmp_path)
    done = _run(tmp_path, "--runs", "1")
    assert done.returncode == 1
    assert json.loads(done.stdout)["golden"]["passed"] is False


def test_infinite_difference_is_valid_json(tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    write_golden(
        tmp_path, inputs={"x": np.ones((2, 4), np.float32)}, outputs={"z": np.ones(1)}, max_abs_difference=1, texts=[]
    )
    write(tmp_path)
    done = _run(tmp_path, "--runs", "1")
    assert "Infinity" not in done.stdout
    assert json.loads(done.stdout)["golden"]["max_abs_difference"] is None


def test_altered_artifact_is_exit_code_four_without_a_traceback(tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    write(tmp_path)
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = _run(tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert "bytes, but the manifest says" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_artifact_is_exit_code_two(tmp_path: Path) -> None:
    assert _run(tmp_path / "none").returncode == 2


def test_bare_model_is_run_on_made_up_inputs(tmp_path: Path) -> None:
    result = probe(save(affine(), tmp_path / "model.onnx"), num_runs=2)
    assert result["golden"] is None
    assert result["input_shapes"] == {"x": [8, 4]}


def test_inputs_can_be_given(tmp_path: Path) -> None:
    model = save(affine(), tmp_path / "model.onnx")
    save_file({"x": np.ones((5, 4), np.float32)}, tmp_path / "inputs.safetensors")
    assert probe(model, num_runs=1, inputs=tmp_path / "inputs.safetensors")["input_shapes"] == {"x": [5, 4]}
    with pytest.raises(UsageError, match="no such file"):
        probe(model, inputs=tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="no safetensors"):
        probe(model, inputs=tmp_path / "bad.safetensors")


def test_runs_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs is 0"):
        probe(tmp_path, num_runs=0)
