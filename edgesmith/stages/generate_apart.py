"""Time a text-generating artifact in a process of its own, as a server would run it: its engine and nothing else.

Torch and llama.cpp share one OpenMP where both are loaded, and the first one decides how threads wait. Beside torch,
whose threads sleep while they wait here, llama.cpp generates two to three times slower than alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith import errors
from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import EdgesmithError
from edgesmith.stages.engines import open_generator

if TYPE_CHECKING:
    from bench.scenarios.generate import GenerationOptions
    from bench.scenarios.generation import Generation

__all__ = ["main", "time_apart"]

_MODULE = "edgesmith.stages.generate_apart"


def time_apart(artifact: Artifact, prompts: Sequence[str], options: GenerationOptions, *, threads: int) -> Generation:
    """Measure in a fresh process; its progress goes to standard error, as this one's does.

    Args:
        artifact: Of a kind that writes text.
        prompts: See `measure_generation`.
        options: See `measure_generation`.
        threads: Of the engine.

    Raises:
        EdgesmithError: what the measurement raised there.
    """
    from bench.scenarios.generation import Generation

    with TemporaryDirectory(prefix="edgesmith-") as temporary:
        folder = Path(temporary)
        job = {
            "artifact": str(artifact.path.absolute()),
            "digest": artifact.digest,
            "prompts": list(prompts),
            "options": asdict(options),
            "threads": threads,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # -P: a file in the user's folder must not stand in for one of our packages.
        done = subprocess.run([sys.executable, "-P", "-m", _MODULE, temporary], stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise _error(done)
        return Generation.load(folder)


def _error(done: subprocess.CompletedProcess[bytes]) -> EdgesmithError:
    """What the other process said of its end."""
    try:
        said = json.loads(done.stdout)
        kind = getattr(errors, said["kind"])
        return kind(said["message"], mend=said["mend"])  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, AttributeError):
        return EdgesmithError(f"the process that timed answers ended with code {done.returncode}")


def main(folder: Path) -> int:
    """Do the job that lies in a folder, and leave the measurement there."""
    try:
        _measure(folder, json.loads((folder / "job.json").read_bytes()))
    except EdgesmithError as error:
        said = {"kind": type(error).__name__, "message": error.message, "mend": error.mend}
        sys.stdout.write(json.dumps(said))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(folder: Path, job: dict[str, Any]) -> None:
    from bench.scenarios.generate import GenerationOptions, measure_generation
    from edgesmith.console import ConsoleProgress

    path = Path(job["artifact"])
    artifact = open_artifact(path)
    with open_generator(artifact, job["threads"]) as engine:
        measure_generation(
            engine,
            job["prompts"],
            options=GenerationOptions(**job["options"]),
            artifact_digest=job["digest"],
            threads=job["threads"],
            progress=ConsoleProgress(),
        ).save(folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
