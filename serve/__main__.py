"""`python -m serve NAME=PATH …`: the thin runtime, with nothing but what serving needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgesmith.errors import EdgesmithError
from serve.arguments import make_parser, read_config
from serve.logs import log_to_stderr
from serve.places import run_at

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    given = make_parser().parse_args(arguments)
    log_to_stderr()
    try:
        config = read_config(given)
        run_at(config, given.on, given.replicas)
    except EdgesmithError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"the library `{error.name}` is not installed\n  → Install it: pip install 'edgesmith[serve]'\n"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
