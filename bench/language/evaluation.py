"""How well a language model predicts a text, token by token, and how far it is from its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.language.intervals import Estimate, bound_mean, clustered_share, token_error
from bench.language.packing import describe, pack, unpack
from bench.raw import damage_errors, pretty_json, read_json
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import bound_percentile
from bench.stats.resampling import Bounds
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write, storage_errors

__all__ = ["LANGUAGE", "LanguageEvaluation"]

LANGUAGE = "language.json"
TOKENS = "language_tokens.bin.gz"
_CONFIDENCE = 0.975
_KLD_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_COLUMNS = ("nll", "reference_nll", "kld", "same_top")

Tokens = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LanguageEvaluation:
    """Losses of all scored tokens of a text, and how far each prediction is from the reference's.

    W windows of S scored tokens; nats throughout.
    """

    engine: str
    artifact_digest: str | None
    """Of what was measured; None for an engine that is no artifact."""
    windows_digest: str
    """Of the windows: equal ones make two measurements comparable token by token."""
    window_length: int
    bos: int | None
    num_vocabulary: int
    """Tokens that the probabilities are of."""
    num_excluded: int
    """Logits of the engine beyond them: padding of the embedding, left out."""
    nll: Tokens
    """−ln of the probability of the token that the text has, of shape [W, S]."""
    reference_nll: Tokens | None = None
    """The same of the reference; None where none was given."""
    kld: Tokens | None = None
    """KL(reference ‖ artifact) after each token, of shape [W, S]."""
    same_top: NDArray[np.bool_] | None = None
    """Whether both hold the same token for the likeliest."""
    reference_engine: str | None = None
    reference_artifact: str | None = None
    """Digest of the reference model."""
    reference_digest: str | None = None
    """Of what is kept of it."""
    text: str = ""
    """What the text is called."""
    seconds: float = 0.0

    @property
    def num_windows(self) -> int:
        """W."""
        return len(self.nll)

    @property
    def num_tokens(self) -> int:
        """Scored tokens, W · S."""
        return self.nll.size

    @property
    def has_reference(self) -> bool:
        """Whether it was compared with a reference."""
        return self.kld is not None

    @property
    def p_diff(self) -> Tokens:
        """Probability of the text's token, less that of the reference; of shape [W, S].

        Raises:
            UsageError: There is no reference.
        """
        return np.asarray(np.exp(-self.nll) - np.exp(-self._of_reference("reference_nll")))

    @property
    def log_ratios(self) -> Tokens:
        """Loss less that of the reference, of shape [W, S].

        Raises:
            UsageError: There is no reference.
        """
        return np.asarray(self.nll - self._of_reference("reference_nll"))

    def _of_reference(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] | None = getattr(self, name)
        if found is None:
            raise UsageError(
                f"{self.engine} was measured without a reference",
                mend="Measure it with one: `edgesmith eval ARTIFACT --against CHECKPOINT`.",
            )
        return found

    def perplexity(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Exponential of the mean loss."""
        return _exponential(self.nll, confidence)

    def reference_perplexity(self, confidence: float = _CONFIDENCE) -> Estimate:
        """The same of the reference."""
        return _exponential(self._of_reference("reference_nll"), confidence)

    def perplexity_ratio(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Perplexity over that of the reference; ± of the logarithm takes the covariance into account."""
        return _exponential(self.log_ratios, confidence)

    def mean_kld(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Mean divergence from the reference, nats a token."""
        found = _mean(self._of_reference("kld"), confidence)
        return _estimate(found.value, found.error, found, confidence, lambda value: max(0.0, value))

    def kld_percentile(self, percentile: float, confidence: float = _CONFIDENCE) -> Estimate:
        """A percentile of the divergence over tokens, interpolated as llama.cpp's tool does.

        Its bounds hold for any distribution; tokens that diverge in bursts count for fewer.
        """
        kld = self._of_reference("kld").reshape(-1).astype(np.float64)
        value = float(np.quantile(kld, percentile / 100))
        found = bound_percentile(kld, percentile, confidence, percentile_inflation(kld, percentile))
        return Estimate(value=value, lower=found.lower, upper=found.upper, confidence=confidence)

    def flip_rate(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Share of the tokens after which both hold another one for the likeliest."""
        flipped = ~self._of_reference("same_top")
        bounds, share = (
            clustered_share(flipped, confidence=confidence, like=self._of_reference("kld")),
            float(flipped.mean()),
        )
        return _with_bounds(share, math.sqrt(share * (1 - share) / (flipped.size - 1)), bounds, confidence)

    def same_top_rate(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Share of the tokens after which both hold the same one for the likeliest."""
        flips = self.flip_rate(confidence)
        lower, upper = (None if one is None else 1 - one for one in (flips.upper, flips.lower))
        return Estimate(value=1 - flips.value, error=flips.error, lower=lower, upper=upper, confidence=confidence)

    def mean_p_diff(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Mean change of the probability of the text's token."""
        return _mean(self.p_diff, confidence)

    def rms_p_diff(self, confidence: float = _CONFIDENCE) -> Estimate:
        """Root of the mean squared change of that probability."""
        squares = self.p_diff.astype(np.float64) ** 2
        found = _mean(squares, confidence)
        value = math.sqrt(found.value)
        error = 0.5 / value * (found.error or 0.0) if value > 0 else 0.0
        return _estimate(value, error, found, confidence, lambda one: math.sqrt(max(0.0, one)))

    def window_ratios(self) -> NDArray[np.float64]:
        """Perplexity over the reference's, of each window."""
        return np.asarray(np.exp(self.log_ratios.mean(axis=1, dtype=np.float64)))

    def summary(self) -> dict[str, Any]:
        """Give the figures without the single tokens, JSON-able."""
        figures: dict[str, Any] = {"perplexity": self.perplexity().to_json()}
        if self.has_reference:
            figures |= self._against_reference()
        return {
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "text": self.text,
            "windows_digest": self.windows_digest,
            "num_windows": self.num_windows,
            "window_length": self.window_length,
            "num_tokens": self.num_tokens,
            "bos": self.bos,
            "num_vocabulary": self.num_vocabulary,
            "num_excluded": self.num_excluded,
            "reference_engine": self.reference_engine,
            "reference_artifact": self.reference_artifact,
            "reference_digest": self.reference_digest,
            "confidence": _CONFIDENCE,
            **figures,
            "seconds": round(self.seconds, 3),
        }

    def _against_reference(self) -> dict[str, Any]:
        klds, diffs = self._of_reference("kld"), self.p_diff
        correlation = np.corrcoef(self.nll.reshape(-1), self._of_reference("reference_nll").reshape(-1))[0, 1]
        return {
            "reference_perplexity": self.reference_perplexity().to_json(),
            "perplexity_ratio": self.perplexity_ratio().to_json(),
            "loss_correlation": float(correlation) if np.isfinite(correlation) else None,
            "kld": {
                "mean": self.mean_kld().to_json(),
                **{f"p{one:g}": self.kld_percentile(one).to_json() for one in _KLD_PERCENTILES},
                "max": float(klds.max()),
            },
            "p_diff": {
                "mean": self.mean_p_diff().to_json(),
                "rms": self.rms_p_diff().to_json(),
                **{f"p{one:g}": float(np.quantile(diffs, one / 100)) for one in (0.1, 1, 5, 50, 95, 99, 99.9)},
                "min": float(diffs.min()),
                "max": float(diffs.max()),
            },
            "same_top": self.same_top_rate().to_json(),
        }

    def save(self, folder: Path) -> None:
        """Write `language.json` and every token's figures into a folder; the latter is reproducible to the byte.

        Raises:
            StorageError: The folder cannot be written.
        """
        found = {name: one for name in _COLUMNS if (one := getattr(self, name)) is not None}
        atomic_write(folder / TOKENS, pack(found))
        summary = {"schema_version": 2} | self.summary() | {"columns": describe(found)}
        atomic_write(folder / LANGUAGE, pretty_json(summary))

    @classmethod
    def load(cls, folder: Path) -> LanguageEvaluation:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such measurement.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / LANGUAGE, mend="Make one with `edgesmith eval`.")
        source = folder / TOKENS
        with damage_errors(source):
            with storage_errors(source):
                content = source.read_bytes()
            return _from_columns(value, unpack(content, value["columns"]))


def _from_columns(value: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> LanguageEvaluation:
    num_windows, num_tokens = int(value["num_windows"]), int(value["num_tokens"])
    if set(columns) not in ({"nll"}, set(_COLUMNS)) or len(columns) != len(value["columns"]):
        raise ValueError(f"columns {', '.join(columns)}")
    shape = columns["nll"].shape
    if len(shape) != 2 or not num_tokens or shape[0] != num_windows or math.prod(shape) != num_tokens:
        raise ValueError(f"losses of shape {shape} for {num_tokens} tokens in {num_windows} windows")
    for name, column in columns.items():
        kind = np.bool_ if name == "same_top" else np.float32
        if column.shape != shape or column.dtype != kind:
            raise ValueError(f"{name} of shape {column.shape} and type {column.dtype}")
        if kind is np.float32 and not (np.isfinite(column) & (column >= -1e-3)).all():
            raise ValueError("a token's figure is no loss and no divergence")
    read = LanguageEvaluation(
        **{name: value[name] for name in _PLAIN},
        nll=columns["nll"],
        reference_nll=columns.get("reference_nll"),
        kld=columns.get("kld"),
        same_top=columns.get("same_top"),
    )
    if not math.isclose(read.perplexity().value, value["perplexity"]["value"], rel_tol=1e-6):
        raise ValueError("losses of another perplexity than the summary's")
    return read


_PLAIN = (
    *("engine", "artifact_digest", "text", "windows_digest", "window_length", "bos", "num_vocabulary"),
    *("num_excluded", "reference_engine", "reference_artifact", "reference_digest", "seconds"),
)


def _mean(values: NDArray[np.floating[Any]], confidence: float) -> Estimate:
    bounds = bound_mean(values, confidence=confidence)
    value = float(values.mean(dtype=np.float64))
    return _with_bounds(value, token_error(values), bounds, confidence)


def _exponential(values: NDArray[np.floating[Any]], confidence: float) -> Estimate:
    """Exponential of a mean; its ± as llama.cpp has it, by the derivative."""
    found = _mean(values, confidence)
    value = _exp(found.value)
    return _estimate(value, value * (found.error or 0.0), found, confidence, _exp)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _with_bounds(value: float, error: float, bounds: Bounds | None, confidence: float) -> Estimate:
    if bounds is None:
        return Estimate(value=value, error=error, confidence=confidence)
    return Estimate(value=value, error=error, lower=bounds.lower, upper=bounds.upper, confidence=confidence)


def _estimate(
    value: float, error: float | None, found: Estimate, confidence: float, change: Callable[[float], float]
) -> Estimate:
    """A figure whose bounds are a rising function of those of another one."""
    if found.lower is None or found.upper is None:
        return Estimate(value=value, error=error, confidence=confidence)
    return Estimate(
        value=value, error=error, lower=change(found.lower), upper=change(found.upper), confidence=confidence
    )
