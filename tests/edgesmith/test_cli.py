"""The command line starts at once, and says of every command what it does, with an example."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from edgesmith import api
from edgesmith.cli import app, main
from edgesmith.doctor import diagnose

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgesmith.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`run` without a process of its own, for what ends before any work."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which `main` sets where it is not

    def run_main(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, left.value.code or 0, said.out, said.err)

    yield run_main
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run_here: Run, command: str) -> None:
    done = run_here(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Example: edgesmith {command}" in " ".join(done.stdout.split())


def test_every_command_is_a_function_of_the_same_name() -> None:
    assert sorted(name.replace("-", "_") for name in COMMANDS) == sorted(api.__all__)


def test_help_shows_defaults_that_stand_in_brackets() -> None:
    assert "[default: 20," in run("load", "--help").stdout


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


@pytest.mark.parametrize("arguments", [("doctor",), ("doctor", "--json"), ("schema",), ("--help",)])
def test_a_full_disk_behind_standard_output_is_one_line_and_no_verdict(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", "from edgesmith.cli import main; main()", *arguments]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: standard output: cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("quantize", "x", "-o", "y", "--max-mean-kld", "-1"), "--max-mean-kld"),
        (("quantize", "x", "-o", "y", "--max-mb", "nan"), "--max-mb"),
        (("quantize", "x", "-o", "y", "--bits-per-weight", "40"), "--bits-per-weight"),
        (("generate", "x", "a", "--seed", "-1"), "--seed"),
        (("generate", "x", "a", "--stop", ""), "--stop"),
        (("generate", "x", "a", "--schema", "none.json"), "--schema none.json: no such file"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_flag(run_here: Run, arguments: tuple[str, ...], flag: str) -> None:
    done = run_here(*arguments)
    assert done.returncode == 2
    assert flag in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_obeys_no_control_characters_and_a_pipe_gets_the_models_own_text() -> None:
    code = "from edgesmith import console; console.write('a\\x1b[31mb')"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stdout == b"a\x1b[31mb"
    terminal = f"import sys; sys.stdout.isatty = lambda: True; {code}"
    shown = subprocess.run([sys.executable, "-c", terminal], capture_output=True, check=True)
    assert shown.stdout == b"a\\x1b[31mb"
