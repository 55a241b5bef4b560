"""How llama.cpp's library is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os
from serve.runtime.llama_loading import load_library
load_library()
print(os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP, which says what it read")
def test_its_threads_do_not_sleep_while_they_wait_for_each_other() -> None:
    """Asleep they generate two to three times slower; the setting stays for the libraries that it is meant for."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_DISPLAY_ENV": "VERBOSE"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    spins = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if not spins:
        pytest.skip("this llama.cpp was built without GNU's OpenMP")
    assert "0" not in spins  # which is what PASSIVE comes to
    assert done.stdout.strip() == "PASSIVE"
