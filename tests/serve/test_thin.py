"""The serving side must stay light: what it loads is looked at in fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "optimum", "onnx", "onnx_ir", "onnxscript", "accelerate", "scipy"}
STAGES = {"compress", "export", "bench"}

ANSWER = """
import json, sys
from pathlib import Path
import serve, serve.runtime, serve.runtime.golden, serve.runtime.probe
from edgesmith.artifact import open_artifact
from edgesmith.tasks import load_task
from serve.runtime import open_engine
from serve.runtime.golden import check_golden

folder = Path(sys.argv[1])
artifact = open_artifact(folder)
task, engine = load_task(folder), open_engine(artifact)
arrays = task.encode(["A late goal won the cup."])
prediction = task.decode(engine.run(arrays), arrays, ["A late goal won the cup."])[0]
assert check_golden(artifact, engine).passed
engine.close()
print(json.dumps({"prediction": prediction, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def fresh(code: str, *arguments: str | Path) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def test_answering_a_text_loads_no_training_library_and_no_stage(classifier_path: Path) -> None:
    result = fresh(ANSWER, classifier_path)
    assert "onnxruntime" in result["modules"]
    assert not (HEAVY | STAGES) & set(result["modules"])


def test_importing_the_runtime_loads_no_engine() -> None:
    result = fresh("import json, sys, serve.runtime; print(json.dumps({'modules': sorted(sys.modules)}))")
    assert not (HEAVY | STAGES | {"onnxruntime", "tokenizers"}) & set(result["modules"])


@pytest.mark.parametrize(("library", "module"), [("onnxruntime", "open_engine"), ("tokenizers", "load_task")])
def test_missing_library_names_the_extra(classifier_path: Path, library: str, module: str) -> None:
    code = f"""
import json, sys
from pathlib import Path
sys.modules[{library!r}] = None
from edgesmith.artifact import open_artifact
from edgesmith.errors import MissingExtraError
from edgesmith.tasks import load_task
from serve.runtime import open_engine
folder = Path(sys.argv[1])
try:
    {"open_engine(open_artifact(folder))" if module == "open_engine" else "load_task(folder)"}
except MissingExtraError as error:
    print(json.dumps({{"modules": [str(error)]}}))
"""
    message = fresh(code, classifier_path)["modules"][0]
    assert f"`{library}` is not installed" in message
    assert "pip install 'edgesmith[serve]'" in message
