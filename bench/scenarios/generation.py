"""Times of generated texts: how long until the first text, and how fast it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.machine.conditions import Conditions
from bench.machine.machine import Machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import PercentileBounds, bound_percentile
from bench.strict import check_numbers
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write

__all__ = ["GENERATION", "Generation"]

GENERATION = "generation.json"
CHUNKS = "generation_ns.csv.gz"
_PERCENTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Every chunk of every answer, with the moment at which it came."""

    engine: str
    artifact_digest: str | None
    inputs: str
    max_tokens: int
    prompt_tokens: NDArray[np.int64]
    """Of each request, of shape [num_requests]."""
    cpu_ns: NDArray[np.int64]
    """CPU time of this process, all threads, for each request; of shape [num_requests]."""
    request: NDArray[np.int64]
    """Which request a chunk belongs to, ascending, of shape [num_chunks]."""
    at_ns: NDArray[np.int64]
    """Time of each chunk since its request began, of shape [num_chunks]."""
    tokens: NDArray[np.int64]
    """Tokens of each chunk."""
    has_text: NDArray[np.int64]
    """1 for a chunk with text, 0 for one without."""
    is_settled: bool
    threads: int
    machine: Machine
    conditions: Conditions | None = None
    energy_mj: float | None = None
    """Energy of the processor's packages for each generated token; None where the machine does not say."""
    first_cpu_ns: NDArray[np.int64] | None = None
    """CPU time of each request until its first chunk, of shape [num_requests]; None where it was not measured."""
    num_discarded: int = 0
    """Answers that ended before `max_tokens` and were asked for anew with another prompt, where all were to be as
    long as that."""
    num_reused_tokens: int = 0
    """Tokens of all prompts that the engine had from the text before and did not read: they count for no speed."""
    scenario: str = "generate"

    @property
    def num_requests(self) -> int:
        """How many answers were timed."""
        return len(self.prompt_tokens)

    @property
    def generated_tokens(self) -> NDArray[np.int64]:
        """Of each request, of shape [num_requests]."""
        return np.bincount(self.request, weights=self.tokens, minlength=self.num_requests).astype(np.int64)

    @property
    def ttft_ns(self) -> NDArray[np.float64]:
        """Time of each request to its first text, of shape [num_requests]; infinite where there was none."""
        first = np.full(self.num_requests, np.inf)
        with_text = self.has_text > 0
        np.minimum.at(first, self.request[with_text], self.at_ns[with_text].astype(np.float64))
        return first

    @property
    def first_token_ns(self) -> NDArray[np.int64]:
        """Time of each request to its first token, with text or without: the prompt is read by then."""
        return np.asarray(self.at_ns[self._first_chunks])

    @property
    def itl_ns(self) -> NDArray[np.int64]:
        """Times between successive chunks of a request, all requests in a row."""
        return np.asarray(np.diff(self.at_ns)[np.diff(self.request) == 0])

    @property
    def tpot_ns(self) -> NDArray[np.float64]:
        """Mean time of a token after the first chunk, of each request that has any."""
        later = self.generated_tokens - self.tokens[self._first_chunks]
        taken = self.at_ns[self._last_chunks] - self.first_token_ns
        return np.asarray(taken[later > 0] / later[later > 0])

    @property
    def prompt_tokens_per_second(self) -> float:
        """Tokens of all prompts over the time to the first tokens, which is counted in."""
        return self._num_read / (float(self.first_token_ns.sum()) / 1e9)

    @property
    def generated_tokens_per_second(self) -> float | None:
        """Tokens after the first chunk of all requests over their time; None where there are none."""
        later = int((self.generated_tokens - self.tokens[self._first_chunks]).sum())
        taken_ns = int((self.at_ns[self._last_chunks] - self.first_token_ns).sum())
        return later / (taken_ns / 1e9) if later and taken_ns else None

    @property
    def prompt_tokens_per_cpu_second(self) -> float | None:
        """Tokens of all prompts over the CPU time to the first tokens; None where that was not measured."""
        taken_ns = 0 if self.first_cpu_ns is None else int(self.first_cpu_ns.sum())
        return self._num_read / (taken_ns / 1e9) if taken_ns else None

    @property
    def generated_tokens_per_cpu_second(self) -> float | None:
        """Tokens after the first chunk of all requests over their CPU time; None where that was not measured."""
        if self.first_cpu_ns is None:
            return None
        later = int((self.generated_tokens - self.tokens[self._first_chunks]).sum())
        taken_ns = int((self.cpu_ns - self.first_cpu_ns).sum())
        return later / (taken_ns / 1e9) if later and taken_ns > 0 else None

    @property
    def prompt_test(self) -> str:
        """The prompts as llama-bench calls them, such as `pp512`; `pp12-80` for those of different lengths."""
        return f"pp{_span(self.prompt_tokens)}"

    @property
    def generation_test(self) -> str:
        """The answers as llama-bench calls them: `tg128 @ d512` are 128 tokens each after a prompt of 512."""
        return f"tg{_span(self.generated_tokens)} @ d{_span(self.prompt_tokens)}"

    @property
    def cpu_ms_per_token(self) -> float:
        """CPU time of all requests over the tokens generated, prompts included, in milliseconds."""
        return float(self.cpu_ns.sum()) / 1e6 / float(self.tokens.sum())

    @property
    def _num_read(self) -> int:
        return int(self.prompt_tokens.sum()) - self.num_reused_tokens

    @property
    def _first_chunks(self) -> NDArray[np.int64]:
        return np.searchsorted(self.request, np.arange(self.num_requests), side="left")

    @property
    def _last_chunks(self) -> NDArray[np.int64]:
        return np.searchsorted(self.request, np.arange(self.num_requests), side="right") - 1

    def percentile(self, kind: str, percentile: float, confidence: float = 0.99) -> PercentileBounds:
        """Bound a percentile of `ttft`, `tpot` or `itl`, in milliseconds.

        Successive requests, and the gaps of `itl` within one, depend on each other and count for fewer.

        Raises:
            UsageError: There is no such figure.
        """
        match kind:
            case "ttft":
                samples = self.ttft_ns
            case "tpot":
                samples = self.tpot_ns
            case "itl":
                samples = self.itl_ns.astype(np.float64)
            case _:
                raise UsageError(f"generation has no figure {kind!r}", mend="Use ttft, tpot or itl.")
        return bound_percentile(samples / 1e6, percentile, confidence, percentile_inflation(samples, percentile))

    def summary(self) -> dict[str, Any]:
        """Give the figures without the samples, JSON-able. An unsupported percentile is null."""
        figures: dict[str, Any] = {}
        for kind in ("ttft", "tpot", "itl"):
            bounds = [self.percentile(kind, percentile) for percentile in _PERCENTILES]
            figures[f"{kind}_ms"] = {f"p{bound.percentile:g}": _finite(bound.estimate) for bound in bounds}
            figures[f"{kind}_bounds_ms"] = {
                f"p{bound.percentile:g}": {
                    "confidence": bound.confidence,
                    "lower": _finite(bound.lower),
                    "upper": _finite(bound.upper),
                    "num_required": bound.num_required,
                }
                for bound in bounds
            }
        return {
            "scenario": self.scenario,
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "max_tokens": self.max_tokens,
            "num_requests": self.num_requests,
            "num_without_text": int(np.isinf(self.ttft_ns).sum()),
            "threads": self.threads,
            "is_settled": self.is_settled,
            **figures,
            "prompt_test": self.prompt_test,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "prompt_tokens_per_cpu_second": self.prompt_tokens_per_cpu_second,
            "generation_test": self.generation_test,
            "generated_tokens_per_second": self.generated_tokens_per_second,
            "generated_tokens_per_cpu_second": self.generated_tokens_per_cpu_second,
            "num_discarded": self.num_discarded,
            "num_reused_tokens": self.num_reused_tokens,
            "cpu_ms_per_token": self.cpu_ms_per_token,
            "energy_mj": self.energy_mj,
            "prompt_tokens": self.prompt_tokens.tolist(),
            "generated_tokens": self.generated_tokens.tolist(),
            "cpu_ns": self.cpu_ns.tolist(),
            "first_cpu_ns": None if self.first_cpu_ns is None else self.first_cpu_ns.tolist(),
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `generation.json` and every chunk's time into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / CHUNKS, columns_to_bytes({name: getattr(self, name) for name in _COLUMNS}))
        atomic_write(folder / GENERATION, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Generation:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such measurement.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / GENERATION, mend="Make one with `edgesmith bench --scenario generate`.")
        columns = read_columns(folder / CHUNKS)
        with damage_errors(folder / GENERATION):
            check_numbers(value, ("max_tokens", "threads"), optional=("energy_mj",))
            conditions, first_cpu_ns = value["conditions"], value.get("first_cpu_ns")
            read = cls(
                **{name: value[name] for name in _PLAIN},
                num_discarded=int(value.get("num_discarded", 0)),
                num_reused_tokens=int(value.get("num_reused_tokens", 0)),
                first_cpu_ns=None if first_cpu_ns is None else np.array(first_cpu_ns, dtype=np.int64),
                request=columns["request"],
                at_ns=columns["at_ns"],
                tokens=columns["tokens"],
                has_text=columns["has_text"],
                prompt_tokens=np.array(value["prompt_tokens"], dtype=np.int64),
                cpu_ns=np.array(value["cpu_ns"], dtype=np.int64),
                machine=Machine.from_json(value["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )
            if not np.array_equal(np.unique(read.request), np.arange(value["num_requests"])):
                raise ValueError(f"chunks of other requests than the {value['num_requests']}")
            if any(len(column) != read.num_requests for column in (read.cpu_ns, first_cpu_ns or read.cpu_ns)):
                raise ValueError(f"CPU times of other requests than the {read.num_requests}")
            if read.generated_tokens.tolist() != value["generated_tokens"] or np.any(np.diff(read.request) < 0):
                raise ValueError("chunks of other tokens than the summary's")
            return read


_COLUMNS = ("request", "at_ns", "tokens", "has_text")
_PLAIN = (
    "scenario",
    "engine",
    "artifact_digest",
    "inputs",
    "max_tokens",
    "threads",
    "is_settled",
    "energy_mj",
)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _span(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}-{high}"
