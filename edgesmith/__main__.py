"""`python -m edgesmith`: the command line, also for the processes that `torchrun` starts.

Every process runs the same command; the first one speaks, writes and decides. The others are silent. Where one of
them fails alone, it says so itself: where all fail alike, torchrun ends them before they come to it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from compress.train.processes import is_leader, num_processes
from edgesmith.cli import main

__all__: list[str] = []

_WAIT_SECONDS = 5.0
_INTERRUPTED = (130, 143)


def _run_silently() -> None:
    """Run the command with nothing on the screen; an error is shown if this process is still there afterwards."""
    screen = os.dup(2)
    with tempfile.TemporaryFile() as said, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            main()
        except SystemExit as leaving:
            sys.stderr.flush()
            if leaving.code not in (None, 0, *_INTERRUPTED):
                time.sleep(_WAIT_SECONDS)  # the first process has said it, if it failed too, and torchrun ends this one
                said.seek(0)
                os.write(screen, said.read())
            raise


if __name__ == "__main__":
    if num_processes() > 1:  # before torch is loaded: its hints at slow settings are for those who wrote the code
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if is_leader():
        main()
    else:
        _run_silently()
