"""How near the writing of a language model is to what the machine's memory and arithmetic allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.machine.peaks import MachinePeaks
from bench.machine.token_work import TokenWork, count_token_work
from bench.raw import damage_errors, pretty_json, read_json
from bench.strict import check_numbers
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write

if TYPE_CHECKING:
    from bench.scenarios.generation import Generation
    from edgesmith.artifact import Artifact

__all__ = ["GENERATION_LIMITS", "GenerationLimits", "measure_generation_limits"]

GENERATION_LIMITS = "generation_limits.json"


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """A machine's peaks, what a token asks of it, and how near generating and reading come.

    With one thread, times are CPU times, as the peaks are; with more, wall times.
    """

    artifact_digest: str
    engine: str
    work: TokenWork
    peaks: MachinePeaks
    mean_position: float
    """Tokens whose keys and values are read for a generated one, on the average."""
    mean_prompt_tokens: float
    """Of a request."""
    tokens_per_second: float
    """Generated, without the first token of each answer."""
    prompt_tokens_per_second: float
    """Read, up to the first token of each answer."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a generated token has to read: the weights, and keys and values of the tokens before it."""
        return self.work.bytes_at(self.mean_position)

    @property
    def limit_tokens_per_second(self) -> float:
        """Of generating, if the memory always delivered at its measured peak."""
        return 1e9 * self.peaks.read_rate(round(self.bytes_per_token)) / self.bytes_per_token

    @property
    def share(self) -> float:
        """Generated tokens a second over their limit: 1 is the machine's memory limit."""
        return self.tokens_per_second / self.limit_tokens_per_second

    @property
    def _prompt_seconds(self) -> dict[str, float]:
        """Shortest time to read a prompt, by what takes it."""
        floats, integers = self.work.prompt_macs(self.mean_prompt_tokens)
        by_floats = 2e-9 * floats / self.peaks.fp32_gflop_s
        by_integers = 2e-9 * integers / self.peaks.int8_gop_s
        name = "fp32 arithmetic" if by_floats >= by_integers else "int8 arithmetic"
        by_memory = self.work.weight_bytes / (1e9 * self.peaks.read_rate(self.work.weight_bytes))
        return {name: by_floats + by_integers, "memory": by_memory}

    @property
    def prompt_bound_by(self) -> str:
        """`fp32 arithmetic`, `int8 arithmetic` or, for very short prompts, `memory`."""
        return max(self._prompt_seconds, key=lambda name: self._prompt_seconds[name])

    @property
    def prompt_limit_tokens_per_second(self) -> float:
        """Of reading prompts of the mean length, at the peaks of ONNX Runtime's matrix products."""
        return self.mean_prompt_tokens / max(self._prompt_seconds.values())

    @property
    def prompt_share(self) -> float:
        """Read tokens a second over their limit."""
        return self.prompt_tokens_per_second / self.prompt_limit_tokens_per_second

    @property
    def sentence(self) -> str:
        """Such as `61 % of this machine's memory limit`."""
        return f"{100 * self.share:.0f} % of this machine's memory limit{_doubt(self.share)}"

    @property
    def prompt_sentence(self) -> str:
        """Such as `prompts at 38 % of this machine's limit, bound by int8 arithmetic`."""
        said = f"prompts at {100 * self.prompt_share:.0f} % of this machine's limit, bound by {self.prompt_bound_by}"
        return said + _doubt(self.prompt_share)

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: getattr(self, name) for name in _DERIVED},
            "work": self.work.to_json(),
            "peaks": self.peaks.to_json(),
        }

    def save(self, folder: Path) -> None:
        """Write `generation_limits.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / GENERATION_LIMITS, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> GenerationLimits:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / GENERATION_LIMITS, mend="Make one with `edgesmith bench --scenario generate`.")
        with damage_errors(folder / GENERATION_LIMITS):
            check_numbers(value, _FIGURES)
            if not value["mean_prompt_tokens"] > 0:
                raise ValueError(f"prompts of {value['mean_prompt_tokens']} tokens")
            read = cls(
                **{name: value[name] for name in _PLAIN},
                work=TokenWork.from_json(value["work"]),
                peaks=MachinePeaks.from_json(value["peaks"]),
            )
            for name in ("share", "prompt_share"):
                if not np.isclose(getattr(read, name), value[name]):
                    raise ValueError(f"a {name} of {value[name]} where the figures give {getattr(read, name)}")
            return read


_FIGURES = ("mean_position", "mean_prompt_tokens", "tokens_per_second", "prompt_tokens_per_second")
_PLAIN = ("artifact_digest", "engine", *_FIGURES)
_DERIVED = (
    "sentence",
    "share",
    "bytes_per_token",
    "limit_tokens_per_second",
    "prompt_sentence",
    "prompt_share",
    "prompt_bound_by",
    "prompt_limit_tokens_per_second",
)


def measure_generation_limits(artifact: Artifact, generation: Generation, peaks: MachinePeaks) -> GenerationLimits:
    """Say how near a measured speed is to the machine's limit.

    A generated token needs all weights, and they do not fit into a processor's first caches: its time is at least
    that of reading them. A prompt's tokens share them, so it is arithmetic that limits reading.

    Args:
        artifact: Of kind `gguf` or `genai`.
        generation: Of the artifact, with as many threads as `peaks`.
        peaks: From `bench.machine.peaks.measure_peaks`.

    Raises:
        UsageError: Threads or artifacts differ, or no answer has more than one token.
        UnsupportedError: The artifact is of another kind.
        ArtifactError: It is damaged.

    Source: Williams, Waterman & Patterson, "Roofline: an insightful visual performance model for multicore
    architectures", Communications of the ACM 52 (2009); Pope et al., "Efficiently scaling Transformer inference"
    (2022), section 2.
    """
    if generation.threads != peaks.threads:
        raise UsageError(f"times of {generation.threads} threads cannot be held against peaks of {peaks.threads}")
    if generation.artifact_digest not in (None, artifact.digest):
        raise UsageError(f"the times are of {generation.artifact_digest}, not of {artifact.digest}")
    speed, prompt_speed = generation.generated_tokens_per_second, generation.prompt_tokens_per_second
    if peaks.threads == 1:  # whose rates are of CPU time
        speed = generation.generated_tokens_per_cpu_second or speed
        prompt_speed = generation.prompt_tokens_per_cpu_second or prompt_speed
    if speed is None:
        raise UsageError("no answer has more than one token", mend="Ask for longer answers.")
    return GenerationLimits(
        artifact_digest=artifact.digest,
        engine=generation.engine,
        work=count_token_work(artifact),
        peaks=peaks,
        mean_position=_mean_position(generation.prompt_tokens, generation.generated_tokens),
        mean_prompt_tokens=float(generation.prompt_tokens.mean()),
        tokens_per_second=speed,
        prompt_tokens_per_second=prompt_speed,
    )


def _mean_position(prompts: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """Earlier tokens of an answer's second to last one: the k-th is made while those of prompt + k - 2 are read."""
    made = answers - 1
    return float((made * (prompts + (made - 1) / 2)).sum() / made.sum())


def _doubt(share: float) -> str:
    return " (more than its measured peaks allow: they were measured while it was busy)" if share > 1 else ""
