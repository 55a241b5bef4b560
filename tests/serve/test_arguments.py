"""The command lines of the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from edgesmith.cli import app
from edgesmith.errors import ArtifactError, UsageError
from serve.arguments import make_parser, parse_adapter, parse_model, parse_shadow, parse_split, read_config


def config_of(*arguments: str, environment: dict[str, str] | None = None):
    return read_config(make_parser().parse_args(arguments), environment or {})


def test_both_command_lines_have_the_same_flags_with_the_same_defaults():
    thin = {
        action.dest: (tuple(sorted(action.option_strings)), action.default)
        for action in make_parser()._actions
        if action.dest not in ("help", "models")
    }
    full = {
        param.name: (tuple(sorted(param.opts)), [] if param.default is None and param.multiple else param.default)
        for param in get_command(app).commands["serve"].params
        if param.name not in ("help", "models")
    }
    assert full == thin


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [("news=out/server", "news", "1"), ("news:2=out/server", "news", "2"), ("out/server", "server", "1"),
     ("models/a.gguf", "a", "1")],
)  # fmt: skip
def test_a_model_is_named_by_its_label_or_its_path(text: str, name: str, version: str):
    assert parse_model(text)[:2] == (name, version)


@pytest.mark.parametrize("text", ["=x", "news=", "news:=x", ":2=x"])
def test_a_model_with_an_empty_part_is_refused(text: str):
    with pytest.raises(UsageError, match="is no model"):
        parse_model(text)


@pytest.mark.parametrize(
    "text", ["news", "news=", "=1:2", "news=1", "news=1:x", "news=1:-1", "news=1:0,2:0", "news=1:nan", "news=1:1,1:2"]
)
def test_what_is_no_split_is_refused(text: str):
    with pytest.raises(UsageError, match="is no split"):
        parse_split(text)


def test_a_windows_like_adapter_path_keeps_its_colon():
    assert parse_adapter("c:/a.gguf") == (Path("c:/a.gguf"), 1.0)
    assert parse_adapter("a.gguf:0.25") == (Path("a.gguf"), 0.25)


@pytest.mark.parametrize("text", ["news", "=2", "news="])
def test_what_is_no_shadow_is_refused(text: str):
    with pytest.raises(UsageError, match="is no shadow"):
        parse_shadow(text)


def test_one_version_given_twice_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"news:1 is given twice(.|\n)*news:2=PATH"):
        config_of("news=a", "news=b")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "99999"], "--port is 99999"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--timeout", "-1"], "--timeout is -1"),
        (["--max-body-mb", "0"], "--max-body-mb is 0"),
        (["--slo-ms", "-3"], "--slo-ms is -3"),
        (["--repository", "/nowhere"], "--repository /nowhere: no such folder"),
        (["--announce", "/nowhere/address"], "--announce /nowhere/address: its folder is not there"),
        (["--allow-origin", "foo"], "--allow-origin foo: is no web page's origin"),
        (["--adapter", "nowhere.gguf"], "--adapter nowhere.gguf: no such file"),
        (["--split", "e=1:1", "--split", "e=2:1"], "--split names e twice"),
        (["--shadow", "e=1", "--shadow", "e=2"], "--shadow names e twice"),
    ],
)
def test_a_flag_that_cannot_be_obeyed_is_named_with_its_value(flags: list[str], said: str):
    with pytest.raises(UsageError, match=re.escape(said)):
        config_of("e=x", *flags)


def test_without_any_model_there_is_nothing_to_serve():
    with pytest.raises(UsageError, match="no model is given"):
        config_of()


def test_keys_come_from_the_environment(tmp_path: Path):
    config = config_of("a=b", environment={"EDGESMITH_API_KEYS": "one-key-1234567890,two-key-1234567890"})
    assert config.api_keys == ("one-key-1234567890", "two-key-1234567890")
    assert config.admin_token is None


def test_a_runtime_inside_a_bundle_serves_what_the_bundle_holds(tmp_path: Path):
    root = Path(__file__).resolve().parents[2]
    for name in ("serve", "edgesmith"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    index = {
        "schema_version": 1,
        "models": [{"name": "news", "version": "2", "path": "models/news/2", "digest": "sha256:0"}],
    }
    (tmp_path / "bundle.json").write_text(json.dumps(index))
    script = "from serve.arguments import bundled_models; print(bundled_models())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([f"news:2={tmp_path}/models/news/2"])
    (tmp_path / "bundle.json").write_text("{")
    script = f"from edgesmith.errors import ArtifactError\n{script.replace('; ', chr(10))}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ArtifactError.__name__ in done.stderr
    assert "bundle.json: is damaged" in done.stderr


def test_help_has_an_example_of_every_kind_of_use():
    text = make_parser().format_help()
    assert "--split news=1:95,2:5" in text
