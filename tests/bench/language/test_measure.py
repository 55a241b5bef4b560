from __future__ import annotations

import gzip
import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.language.evaluation import LanguageEvaluation
from bench.language.measure import measure_language
from bench.language.reference import Reference, record_reference
from edgesmith.errors import ArtifactError, UsageError, VerificationError
from tests.bench.language.engines import NUM_TOKENS, KnownEngine, all_logs, log_softmax, windows


@pytest.mark.parametrize("noise", [0.0, 2e-3, 0.3, 2.0])
def test_figures_equal_those_of_all_logits_where_all_are_kept(noise: float) -> None:
    text, base, engine = windows(), KnownEngine(), KnownEngine(noise=noise)
    found = measure_language(engine, record_reference(base, text, top_k=NUM_TOKENS))
    p, q = all_logs(base, text), all_logs(engine, text)
    kld = (np.exp(p) * (p - q)).sum(axis=2)
    picked = text.targets[:, :, None]
    assert found.nll == pytest.approx(-np.take_along_axis(q, picked, 2)[:, :, 0], abs=3e-6)
    assert found.reference_nll == pytest.approx(-np.take_along_axis(p, picked, 2)[:, :, 0], abs=3e-6)
    assert found.kld == pytest.approx(kld, rel=1e-4, abs=1e-12)
    assert found.same_top is not None
    assert (found.same_top == (p.argmax(axis=2) == q.argmax(axis=2))).all()


@pytest.mark.parametrize("noise", [2e-3, 0.3])
def test_a_few_tokens_and_a_sample_estimate_the_mean_without_bias(noise: float) -> None:
    text, base, engine = windows(), KnownEngine(), KnownEngine(noise=noise)
    p, q = all_logs(base, text), all_logs(engine, text)
    expected = float((np.exp(p) * (p - q)).sum(axis=2).mean())
    means = [
        measure_language(engine, record_reference(base, text, top_k=8, num_tail=8, seed=seed)).mean_kld().value
        for seed in range(40)
    ]
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    assert error < 0.01 * expected
    assert abs(np.mean(means) - expected) < 4 * error


def test_what_is_kept_is_the_likeliest_tokens_and_their_probabilities() -> None:
    text, base = windows(3), KnownEngine()
    kept, logs = record_reference(base, text, top_k=5, num_tail=6), all_logs(base, text)
    assert (kept.top_ids == np.argsort(-logs, axis=2)[:, :, :5]).all()
    assert kept.top_logs == pytest.approx(np.take_along_axis(logs, kept.top_ids.astype(int), 2), abs=1e-6)
    rest = np.exp(logs).sum(axis=2) - np.exp(kept.top_logs.astype(float)).sum(axis=2)
    assert np.exp(kept.rest_logs) == pytest.approx(rest, rel=1e-5)
    assert not (kept.tail_ids[..., None] == kept.top_ids[:, :, None, :]).any()
    assert kept.perplexity == pytest.approx(math.exp(-kept.target_logs.mean()))


def test_errors_are_those_of_the_perplexity_tool() -> None:
    found = measure_language(KnownEngine(noise=0.5), record_reference(KnownEngine(), windows(), top_k=NUM_TOKENS))
    assert found.reference_nll is not None
    assert found.kld is not None
    a, b = found.nll.astype(float).reshape(-1), found.reference_nll.astype(float).reshape(-1)
    n = len(a)

    def error(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return math.sqrt(((values**2).mean() - values.mean() ** 2) / (n - 1))

    covariance = ((a * b).mean() - a.mean() * b.mean()) / (n - 1)
    of_ratio = math.sqrt(error(a) ** 2 + error(b) ** 2 - 2 * covariance)
    ratio = found.perplexity_ratio()
    assert found.perplexity().error == pytest.approx(math.exp(a.mean()) * error(a))
    assert ratio.value == pytest.approx(math.exp(a.mean() - b.mean()))
    assert ratio.error == pytest.approx(ratio.value * of_ratio, rel=1e-4)
    assert found.mean_kld().error == pytest.approx(error(found.kld.astype(float).reshape(-1)), rel=1e-5)
    difference = np.exp(-a) - np.exp(-b)
    rms = math.sqrt((difference**2).mean())
    assert found.rms_p_diff().value == pytest.approx(rms, rel=1e-5)
    assert found.rms_p_diff().error == pytest.approx(0.5 / rms * error(difference**2), rel=1e-4)
    share = found.same_top_rate()
    assert share.error == pytest.approx(math.sqrt(share.value * (1 - share.value) / (n - 1)))


def test_padding_of_an_embedding_is_left_out_and_said() -> None:
    text = windows(4)
    plain = measure_language(KnownEngine(noise=0.3), record_reference(KnownEngine(), text))
    padded = record_reference(KnownEngine(padding=24), text, num_vocabulary=NUM_TOKENS)
    found = measure_language(KnownEngine(noise=0.3, padding=8), padded)
    assert (padded.num_excluded, found.num_excluded, found.num_vocabulary) == (24, 8, NUM_TOKENS)
    assert (found.nll == plain.nll).all()
    assert found.kld == pytest.approx(plain.kld)
    with pytest.raises(UsageError, match=r"gives 400 logits, fewer than the 424 that are compared"):
        measure_language(KnownEngine(), record_reference(KnownEngine(padding=24), text))


def test_perplexity_needs_no_reference() -> None:
    text = windows(4)
    found = measure_language(KnownEngine(), text, num_vocabulary=NUM_TOKENS)
    assert not found.has_reference
    assert found.nll == pytest.approx(measure_language(KnownEngine(), record_reference(KnownEngine(), text)).nll)
    with pytest.raises(UsageError, match="was measured without a reference"):
        found.mean_kld()


def test_few_windows_have_a_figure_and_no_interval() -> None:
    few = measure_language(KnownEngine(noise=0.3), record_reference(KnownEngine(), windows(7)))
    many = measure_language(KnownEngine(noise=0.3), record_reference(KnownEngine(), windows(8)))
    for one in (few.perplexity(), few.perplexity_ratio(), few.mean_kld(), few.same_top_rate(), few.rms_p_diff()):
        assert one.error is not None
        assert one.lower is None
        assert one.upper is None
    for one in (many.perplexity(), many.perplexity_ratio(), many.mean_kld(), many.same_top_rate(), many.rms_p_diff()):
        assert one.lower is not None
        assert one.upper is not None
        assert one.lower <= one.value <= one.upper
    assert few.summary()["kld"]["mean"]["lower"] is None


def test_measurements_survive_the_disk(tmp_path: Path) -> None:
    reference = record_reference(KnownEngine(), windows(), artifact_digest="sha256:base")
    reference.save(tmp_path)
    read = Reference.load(tmp_path)
    assert read.digest == reference.digest
    assert read.summary() == reference.summary()
    found = measure_language(KnownEngine(noise=0.3), read, artifact_digest="sha256:it", text="words")
    found.save(tmp_path)
    again = LanguageEvaluation.load(tmp_path)
    assert again.summary() == found.summary()
    for name in ("nll", "reference_nll", "kld", "same_top"):
        assert (getattr(again, name) == getattr(found, name)).all()
    before = (tmp_path / "reference.bin.gz").read_bytes()
    reference.save(tmp_path)
    assert (tmp_path / "reference.bin.gz").read_bytes() == before


@pytest.mark.parametrize("file", ["reference.bin.gz", "reference.json", "language_tokens.bin.gz", "language.json"])
def test_damaged_files_are_refused(tmp_path: Path, file: str) -> None:
    load = Reference.load if file.startswith("reference") else LanguageEvaluation.load
    reference = record_reference(KnownEngine(), windows(3))
    reference.save(tmp_path)
    measure_language(KnownEngine(noise=0.3), reference).save(tmp_path)
    content = (tmp_path / file).read_bytes()
    for broken in (content[: len(content) // 2], b"", content[:-9] + b"\x00" * 9, b"{}", b"[1]"):
        (tmp_path / file).write_bytes(broken)
        with pytest.raises(ArtifactError, match="is damaged"):
            load(tmp_path)


def test_a_reference_whose_header_was_changed_is_refused(tmp_path: Path) -> None:
    record_reference(KnownEngine(), windows(3)).save(tmp_path)
    value = json.loads((tmp_path / "reference.json").read_text())
    changes = [{"width": 20}, {"digest": "sha256:0"}, {"bos": 2}, {"columns": []}, {"columns": value["columns"][:-1]}]
    huge = [one | {"shape": [2**20, 2**20]} for one in value["columns"]]
    for change in [*changes, {"columns": huge}, {"columns": [value["columns"][0] | {"dtype": "|O"}]}]:
        (tmp_path / "reference.json").write_text(json.dumps(value | change))
        with pytest.raises(ArtifactError, match="is damaged"):
            Reference.load(tmp_path)


def test_tokens_whose_header_was_changed_are_refused(tmp_path: Path) -> None:
    measure_language(KnownEngine(noise=0.3), record_reference(KnownEngine(), windows(3))).save(tmp_path)
    value = json.loads((tmp_path / "language.json").read_text())
    columns = value["columns"]
    changes = [{"num_windows": 5}, {"num_tokens": 44}, {"columns": columns[:1]}, {"columns": [*columns, columns[0]]}]
    shape = [{"columns": [one | {"shape": [9, 5]} for one in columns]}]
    kind = [{"columns": [columns[0] | {"dtype": "<u4"}, *columns[1:]]}, {"perplexity": {"value": 2.0}}]
    for change in [*changes, *shape, *kind]:
        (tmp_path / "language.json").write_text(json.dumps(value | change))
        with pytest.raises(ArtifactError, match="is damaged"):
            LanguageEvaluation.load(tmp_path)


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    measure_language(KnownEngine(), windows(3)).save(tmp_path)
    (tmp_path / "language_tokens.bin.gz").write_bytes(gzip.compress(bytes(200_000_000), 1))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="instead of 180"):
        LanguageEvaluation.load(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_an_interval_of_the_same_top_is_never_without_width() -> None:
    found = measure_language(KnownEngine(), record_reference(KnownEngine(), windows(40)))
    rate = found.same_top_rate()
    assert (rate.value, rate.upper) == (1.0, 1.0)
    assert rate.lower == pytest.approx(0.025 ** (1 / 300))  # 40 windows of 15 scored tokens, each worth half


def test_other_windows_other_tokens_and_broken_logits_are_named() -> None:
    reference = record_reference(KnownEngine(), windows(3))
    with pytest.raises(UsageError, match="the reference was recorded on other windows"):
        measure_language(KnownEngine(), windows(4), reference=reference)
    with pytest.raises(UsageError, match=r"the text has token \d+, but known, noise 0 knows 100"):
        measure_language(KnownEngine(width=100), windows(3))
    with pytest.raises(UsageError, match=r"a window of 32 tokens does not fit into the 16"):
        measure_language(KnownEngine(context_length=16), reference)
    with pytest.raises(VerificationError, match="a logit is not finite in window 1 of 3"):
        measure_language(KnownEngine(noise=float("nan")), reference)
    for option in ({"top_k": 0}, {"num_tail": 0}, {"num_vocabulary": 500}):
        with pytest.raises(UsageError, match=r"top_k is|gives 400 logits"):
            record_reference(KnownEngine(), windows(3), **option)  # type: ignore[arg-type]


def test_equally_likely_tokens_count_as_the_same_top() -> None:
    class Flat(KnownEngine):
        def logits(self, tokens, *, first=0):  # type: ignore[no-untyped-def]
            return np.zeros((len(tokens) - first, self.num_vocabulary), dtype=np.float32)

    reference = record_reference(Flat(), windows(3), top_k=4, num_tail=4)
    found = measure_language(Flat(), reference)
    assert found.same_top is not None
    assert found.same_top.all()
    assert found.mean_kld().value == pytest.approx(0, abs=1e-9)
    assert found.perplexity().value == pytest.approx(NUM_TOKENS, rel=1e-5)


def test_an_engine_without_doubt_is_measured(tmp_path: Path) -> None:
    class Certain(KnownEngine):
        def logits(self, tokens, *, first=0):  # type: ignore[no-untyped-def]
            rows = np.full((len(tokens) - first, self.num_vocabulary), -300.0, dtype=np.float32)
            rows[:, 3] = 300.0
            return rows

    reference = record_reference(Certain(), windows(3), top_k=4, num_tail=4)
    reference.save(tmp_path)
    found = measure_language(Certain(), Reference.load(tmp_path))
    assert found.mean_kld().value == pytest.approx(0, abs=1e-9)
    assert math.isfinite(measure_language(KnownEngine(), reference).mean_kld().value)


def test_log_softmax_of_the_tests_sums_to_one() -> None:
    assert np.exp(log_softmax(KnownEngine().logits([1, 2, 3]))).sum(axis=1) == pytest.approx([1.0] * 3)


def test_the_reference_changes_with_its_seed_only_in_the_sample() -> None:
    one, other = (record_reference(KnownEngine(), windows(3), top_k=4, num_tail=4, seed=seed) for seed in (0, 1))
    assert (one.top_ids == other.top_ids).all()
    assert (one.tail_ids != other.tail_ids).any()
    assert one.digest != other.digest
    assert replace(one, seconds=9.0).digest == one.digest
