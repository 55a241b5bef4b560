"""Bad input: a clear error on standard error, the designed exit code, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgesmith.artifact import open_artifact
from tests.e2e.conftest import Project

pytestmark = pytest.mark.slow
Released = Callable[[Path], Project]


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip_weight(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF  # in the header
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "base" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def pickle_adapter(folder: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").rename(folder / "adapter" / "adapter_model.bin")


def remote_code(folder: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
    (folder / "base" / "config.json").write_text(json.dumps(config))


def prompt_adapter(folder: Path) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8, "task_type": "SEQ_CLS"}))


def other_base(folder: Path) -> None:
    config = json.loads((folder / "base" / "config.json").read_text())
    from transformers import BertConfig, BertForSequenceClassification

    config["hidden_size"] = 32
    BertForSequenceClassification(BertConfig(**config)).save_pretrained(folder / "base")


def quantized_base(folder: Path) -> None:
    path = folder / "base" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(config))


def rows(folder: Path, *lines: str) -> None:
    (folder / "test.jsonl").write_text("".join(line + "\n" for line in lines))


CASES: list[tuple[str, Callable[[Path], object], int, str]] = [
    (
        "unknown key",
        lambda f: replace_in(f / "recipe.yaml", "min_reduction", "min_reducton"),
        2,
        "did you mean 'min_reduction'",
    ),
    ("missing data", lambda f: (f / "test.jsonl").unlink(), 2, "test.jsonl: no such data file"),
    ("missing adapter", lambda f: shutil.rmtree(f / "adapter"), 2, "no such adapter folder"),
    ("missing base", lambda f: shutil.rmtree(f / "base"), 2, "base: no such checkpoint folder"),
    ("other base", other_base, 4, "32"),
    ("truncated", truncate, 4, "model.safetensors"),
    ("bit flip", flip_weight, 4, "model.safetensors"),
    ("pickle", pickle_adapter, 4, "adapter_model.bin"),
    ("remote code", remote_code, 4, "auto_map"),
    ("prompt tuning", prompt_adapter, 4, "cannot be merged"),
    ("4-bit base", quantized_base, 4, "dequantize"),
    ("unknown label", lambda f: rows(f, '{"text": "a", "label": "sport"}'), 4, "test.jsonl:1"),
    ("empty file", lambda f: rows(f), 4, "holds no rows"),
    ("missing column", lambda f: rows(f, '{"text": "a", "label": 1}', '{"label": 1}'), 4, "test.jsonl:2"),
    ("broken JSON", lambda f: rows(f, '{"text": "a", "label": 1}', '{"text"'), 4, "test.jsonl:2"),
]


@pytest.mark.parametrize(("damage", "code", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_named_and_nothing_is_delivered(
    project: Project, damage: Callable[[Path], object], code: int, message: str
) -> None:
    damage(project.folder)
    done = project.run()
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(project.out.glob("*/manifest.json"))
    assert not list(project.store.glob("work/*"))


def test_what_was_delivered_before_outlives_a_failing_run(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    before = project.manifests()
    rows(project.folder, '{"text": "a", "label": "sport"}')
    assert project.run().returncode == 4
    assert project.manifests() == before
    assert project.edgesmith("check", "out/server").returncode == 0


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "task.json", "golden/golden.json", "manifest.json"])
def test_altered_artifact_is_refused_by_every_command(released: Released, tmp_path: Path, name: str) -> None:
    project = released(tmp_path)
    path = project.out / "server" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    commands = [
        ("check", "out/server"),
        ("inspect", "out/server"),
        ("predict", "out/server", "text"),
        ("verify", "out/server", "--against", "base"),
        ("eval", "out/server", "--data", "test.jsonl"),
        ("bench", "out/server"),
        ("gate", "out/server", "--gates", "recipe.yaml"),
        ("quantize", "out/server", "-o", "again"),
    ]
    for command in commands:
        done = project.edgesmith(*command)
        assert done.returncode == 4, (command, done.stderr)
        assert "Traceback" not in done.stderr
    done = project.run()
    if name == "manifest.json":  # no longer known to be ours: left alone
        assert done.returncode == 2
        assert "not replaced" in done.stderr
        shutil.rmtree(project.out / "server")
        done = project.run()
    assert done.returncode == 0, done.stderr  # replaced from the store
    assert project.edgesmith("check", "out/server").returncode == 0


def test_altered_evidence_is_refused_by_the_gate(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    path = project.out / "evidence" / "server" / "eval" / "evaluation.json"
    replace_in(path, '"accuracy": 0.', '"accuracy": 1.')
    done = project.edgesmith("gate", "out/server", "--gates", "recipe.yaml")
    assert done.returncode == 4
    assert "evaluation.json" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB: the INT8 artifact of the small model does not fit beside its evidence."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False).returncode != 0:
        pytest.skip("this container may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_full_disk_is_named_and_leaves_no_half_artifact(
    released: Released, tmp_path: Path, small_disk: Path, option: str
) -> None:
    project = released(tmp_path)
    places = {"--out": "out", "--store": "store"} | {option: str(small_disk / "x")}
    done = project.edgesmith("run", "recipe.yaml", *(part for pair in places.items() for part in pair))
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(small_disk.rglob("manifest.json"))
    assert not list(small_disk.rglob("*.tmp"))


def test_read_only_place_is_named(project: Project, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = project.edgesmith("run", "recipe.yaml", "--out", str(small_disk / "x"))
    assert done.returncode == 2, done.stderr
    assert "Read-only file system" in done.stderr
    assert not project.store.exists()  # found out before the work


def test_altered_baseline_is_refused_by_the_gate(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    replace_in(project.out / "evidence" / "server" / "baseline" / "subject.json", '"model_bytes": ', '"model_bytes": 9')
    done = project.edgesmith("gate", "out/server", "--gates", "recipe.yaml")
    assert done.returncode == 4
    assert "subject.json" in done.stderr


def test_calibration_on_the_held_out_rows_is_refused(project: Project) -> None:
    shutil.copyfile(project.folder / "test.jsonl", project.folder / "same.jsonl")
    done = project.run("--set", "data.calibration.path=same.jsonl")
    assert done.returncode == 2
    assert "holds the held-out rows" in done.stderr


def test_unknown_metric_is_found_before_any_work(project: Project) -> None:
    done = project.run("--set", "gates.accuracy={metric: acuracy, max_drop: 0.01}")
    assert done.returncode == 2
    assert "acuracy" in done.stderr
    assert not project.store.exists()


def test_foreign_folder_is_never_replaced(project: Project) -> None:
    (project.out / "server").mkdir(parents=True)
    (project.out / "server" / "thesis.txt").write_text("years of work")
    done = project.run()
    assert done.returncode == 2
    assert "not replaced" in done.stderr
    assert (project.out / "server" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "out/server", "--data", "test.jsonl", "-o", "out/server"),
        ("bench", "out/server", "-o", "out/server"),
        ("quantize", "fp32", "-o", "fp32"),
        ("eval", "fp32", "--data", "test.jsonl", "-o", "out/server"),  # evidence never replaces a model
        ("export", "base", "-o", "base"),
        ("export", "base", "-o", "page"),
    ],
)
def test_no_output_replaces_an_input_or_another_kind(
    released: Released, tmp_path: Path, command: tuple[str, ...]
) -> None:
    project = released(tmp_path)
    entries = [open_artifact(path) for path in project.store.glob("entries/*")]
    [fp32] = [one for one in entries if one.manifest.step == "export"]
    shutil.copytree(fp32.path, project.folder / "fp32")
    (project.folder / "page").mkdir()
    (project.folder / "page" / "manifest.json").write_text('{"name": "a web page"}')
    before = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    done = project.edgesmith(*command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()} == before


def test_artifact_without_its_manifest_is_not_trusted(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    (project.out / "server" / "manifest.json").unlink()
    for command in (("check", "out/server"), ("inspect", "out/server"), ("predict", "out/server", "text")):
        done = project.edgesmith(*command)
        assert done.returncode == 4, command
        assert "manifest.json is missing" in done.stderr
    assert project.edgesmith("check", "out/server/model.onnx").returncode == 4


def test_pattern_that_excludes_nothing_is_refused(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    done = project.run("--set", "targets.server.quantize.exclude=['*atention*']")
    assert done.returncode == 2
    assert "matches no layer" in done.stderr
    assert "attention" in done.stderr


def test_interrupt_ends_with_130_and_a_word(project: Project) -> None:
    command = project.command("run", "recipe.yaml", "--out", "out", "--json")
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stderr is not None
        assert "merge" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(stdout)["exit_code"] == 130
    assert "the next run goes on from there" in stderr


@pytest.mark.parametrize(
    "command", [("inspect", "nowhere"), ("predict",), ("run", "recipe.yaml", "--treads", "2"), ("nonsense",)]
)
def test_json_errors_are_one_object(project: Project, command: tuple[str, ...]) -> None:
    done = project.edgesmith(*command, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2
