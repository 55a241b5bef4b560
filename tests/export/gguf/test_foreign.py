"""A converter of the user's own runs apart, and what it writes is trusted no more than any file."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.errors import ArtifactError, EdgesmithError, UnsupportedError, UsageError
from export.gguf.foreign import convert_with, converter_digest, converter_script
from export.gguf.logit_parity import check_logits
from export.gguf.to_gguf import to_gguf
from export.gguf.tokenizer_parity import check_tokenizer

from .conftest import TEXTS

Maker = Callable[..., Path]
ROOT = Path(__file__).parents[3]

ARGUMENTS = """
import argparse, json, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outfile", type=Path, required=True)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0"], required=True)
given = parser.parse_args()
"""
CONVERT = f"""
sys.path.insert(0, {str(ROOT)!r})
from export.gguf.to_gguf import to_gguf
to_gguf(given.model, given.outfile, dtype=given.outtype)
"""


def write(path: Path, code: str, *, executable: bool = False) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text((f"#!{sys.executable}\n" if executable else "") + ARGUMENTS + code)
    if executable:
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def copy(made: Path) -> str:
    """Code of a converter that has the result already."""
    return f"import shutil\nshutil.copy({str(made)!r}, given.outfile)\n"


def kinds(tmp_path: Path, made: Path) -> dict[str, Path]:
    checkout = tmp_path / "llama.cpp"
    write(checkout / "convert_hf_to_gguf.py", CONVERT)
    return {
        "checkout": checkout,
        "script": write(tmp_path / "mine.py", copy(made)),
        "executable": write(tmp_path / "mine", copy(made), executable=True),
    }


@pytest.mark.parametrize("kind", ["checkout", "script", "executable"])
def test_what_it_writes_is_taken_and_can_be_proven(kind: str, tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    ours = to_gguf(checkpoint, tmp_path / "ours.gguf", dtype="f32")
    program = kinds(tmp_path, ours.path)[kind]
    done = convert_with(program, checkpoint, tmp_path / "new" / "model.gguf", dtype="f32")
    assert done.path.read_bytes() == ours.path.read_bytes()
    assert (done.architecture, done.num_tensors) == (ours.architecture, ours.num_tensors)
    assert (done.num_parameters, done.size_bytes) == (ours.num_parameters, ours.size_bytes)
    assert check_logits(checkpoint, done.path, texts=TEXTS, dtype="f32").mean_kld < 1e-6
    assert check_tokenizer(checkpoint, done.path, num_generated=20).num_lines > 20
    assert [path.name for path in done.path.parent.iterdir()] == ["model.gguf"]


def test_it_gets_nothing_of_the_users_environment(
    tiny_checkpoint: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("HF_TOKEN", "HTTPS_PROXY", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(key, "from the user")
    seen = tmp_path / "seen.json"
    code = f"Path({str(seen)!r}).write_text(json.dumps([dict(os.environ), os.getcwd(), sys.stdin.read()]))"
    with pytest.raises(UnsupportedError, match="ended without an error, but wrote no file; it printed nothing"):
        convert_with(write(tmp_path / "mine.py", code), tiny_checkpoint("LlamaConfig"), tmp_path / "model.gguf")
    environment, folder, given = json.loads(seen.read_text())
    assert "from the user" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] == environment["TMPDIR"] == folder != str(Path.home())
    assert given == ""
    assert not Path(folder).exists()


def test_what_it_prints_fills_no_disk(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    code = (
        "print('line\\n' * 10**6, flush=True)\n"
        f"Path({str(seen)!r}).write_text(json.dumps([one.stat().st_size for one in Path('.').rglob('*')]))"
    )
    with pytest.raises(UnsupportedError, match=r"but wrote no file(\n    line){12}\s"):
        convert_with(write(tmp_path / "mine.py", code), tiny_checkpoint("LlamaConfig"), tmp_path / "model.gguf")
    assert sum(json.loads(seen.read_text())) == 0


def test_a_converter_is_known_by_all_of_its_code(tmp_path: Path) -> None:
    checkout = kinds(tmp_path, tmp_path / "made.gguf")["checkout"]
    parts = [checkout / "gguf-py" / "gguf" / "constants.py", checkout / "conversion" / "llama.py"]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.write_text("x = 1\n")
    before = converter_digest(checkout)
    script = checkout / "convert_hf_to_gguf.py"
    assert before == converter_digest(checkout) == converter_digest(script)
    (checkout / ".git").mkdir()
    for path in (checkout / "README.md", checkout / ".git" / "hook.py"):
        path.write_text("nothing that a conversion reads")
    assert converter_digest(checkout) == before
    seen = {before}
    for part in (*parts, script):
        part.write_text(part.read_text() + "y = 2\n")
        seen.add(converter_digest(checkout))
    parts[0].rename(parts[0].with_name("names.py"))
    seen.add(converter_digest(checkout))
    assert len(seen) == 5


def test_a_single_program_is_known_by_its_bytes(tmp_path: Path) -> None:
    program = write(tmp_path / "mine", "pass", executable=True)
    (tmp_path / "other.py").write_text("x = 1\n")
    before = converter_digest(program)
    (tmp_path / "other.py").write_text("x = 2\n")
    assert converter_digest(program) == before
    write(program, "sys.exit()", executable=True)
    assert converter_digest(program) != before
    with pytest.raises(UsageError, match="no such converter"):
        converter_digest(tmp_path / "missing")


FAILURES: dict[str, tuple[str, type[EdgesmithError], str]] = {
    "fails": (
        "sys.exit('Model Foo is not supported')",
        UnsupportedError,
        "ended with code 1\n    Model Foo is not supp",
    ),
    "long output": (
        "print('line\\n' * 10**6); print('last'); sys.exit(3)",
        UnsupportedError,
        "code 3\n(    line\n)+    last",
    ),
    "controls a terminal": (r"sys.exit('\x1b[2Jred')", UnsupportedError, r"\n     \[2Jred\n"),
    "is killed": ("os.kill(os.getpid(), 9)", UnsupportedError, "was ended by SIGKILL; it printed nothing"),
    "writes text": (
        "given.outfile.write_text('hello')",
        ArtifactError,
        "what it wrote is no GGUF file.*start with GGUF",
    ),
    "writes nothing": ("given.outfile.write_bytes(b'')", ArtifactError, "what it wrote is empty"),
    "hostile": (
        "import gguf\nw = gguf.GGUFWriter(given.outfile, 'llama')\nw.add_chat_template(\"{{ ''.__class__ }}\")\n"
        "w.write_header_to_file()\nw.write_kv_data_to_file()\nw.close()",
        ArtifactError,
        "the chat template is hostile: it reaches for '__class__'",
    ),
    "vocabulary alone": (
        "import gguf\nw = gguf.GGUFWriter(given.outfile, 'llama')\nw.write_header_to_file()\n"
        "w.write_kv_data_to_file()\nw.close()",
        ArtifactError,
        "a file without weights",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_shown_and_leaves_nothing(name: str, tiny_checkpoint: Maker, tmp_path: Path) -> None:
    code, error, message = FAILURES[name]
    out = tmp_path / "out" / "model.gguf"
    with pytest.raises(error, match=message) as caught:
        convert_with(write(tmp_path / "mine.py", code), tiny_checkpoint("LlamaConfig"), out, dtype="f32")
    assert "mine.py" in caught.value.message
    assert caught.value.mend
    assert list(out.parent.iterdir()) == []
    assert len(caught.value.message) < 2000


def test_another_type_than_asked_for_is_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    made = to_gguf(checkpoint, tmp_path / "f16.gguf", dtype="f16").path
    with pytest.raises(ArtifactError, match="wrote most of the weights as F16, F32 was asked for"):
        convert_with(write(tmp_path / "mine.py", copy(made)), checkpoint, tmp_path / "model.gguf", dtype="f32")


def test_one_that_hangs_is_ended_with_what_it_started(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True:\n    open({str(alive)!r}, 'a').write('x'); time.sleep(0.02)"
    code = (
        f"import subprocess\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('waiting', flush=True)\ntime.sleep(600)"
    )
    with pytest.raises(UsageError, match=r"did not end within 2 s\n    waiting"):
        convert_with(
            write(tmp_path / "mine.py", code), tiny_checkpoint("LlamaConfig"), tmp_path / "model.gguf", time_limit_s=2
        )
    size = alive.stat().st_size
    time.sleep(0.2)
    assert alive.stat().st_size == size > 0


def test_a_converter_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no convert_hf_to_gguf\.py"):
        converter_script(tmp_path)
    with pytest.raises(UsageError, match="no such converter"):
        converter_script(tmp_path / "missing")
    (tmp_path / "plain").write_text("text")
    with pytest.raises(UsageError, match="cannot be executed") as caught:
        converter_script(tmp_path / "plain")
    assert "chmod +x" in caught.value.mend


def test_a_program_that_cannot_start_is_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    program = tmp_path / "odd"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(UsageError, match="cannot be started"):
        convert_with(program, tiny_checkpoint("LlamaConfig"), tmp_path / "model.gguf")


def test_a_quantized_checkpoint_is_refused_before_it_runs(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (checkpoint / "config.json").write_text(json.dumps(config))
    program = write(tmp_path / "mine.py", f"Path({str(tmp_path / 'ran')!r}).touch()")
    with pytest.raises(UnsupportedError, match="its weights are quantized"):
        convert_with(program, checkpoint, tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="'q8_0' cannot be written"):
        convert_with(program, checkpoint, tmp_path / "model.gguf", dtype="q8_0")  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()
