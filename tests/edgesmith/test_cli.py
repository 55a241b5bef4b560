"""The command line starts at once, and says of every command what it does, with an example."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgesmith import api
from edgesmith.cli import app
from edgesmith.doctor import diagnose

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgesmith.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Example: edgesmith {command}" in " ".join(done.stdout.split())


def test_every_command_is_a_function_of_the_same_name() -> None:
    assert sorted(COMMANDS) == sorted(api.__all__)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['edgesmith', '--help']\nfrom edgesmith.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'onnxruntime', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor_knows_what_each_extra_brings() -> None:
    facts = {fact["name"]: fact for fact in diagnose()}
    assert "torch" in facts["compress"]["detail"]
    assert "onnxruntime" in facts["serve"]["detail"]
    assert "torch" not in facts["serve"]["detail"]


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    program = f"{sys.executable} -c 'from edgesmith.cli import main; main()'"
    for arguments in ("--help", "load --help", "doctor --json"):
        script = f"{program} {arguments} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "141", done.stderr
        assert "Traceback" not in done.stderr


def test_an_internal_error_is_no_verdict() -> None:
    code = (
        "import sys\nfrom edgesmith import api, cli\n"
        "def broken(*_, **__): raise RuntimeError('a bug')\n"
        "api.inspect = broken\nsys.argv = ['edgesmith', 'inspect', 'x', '--json']\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert '"exit_code": 2' in done.stdout
    assert "a bug" in done.stderr
