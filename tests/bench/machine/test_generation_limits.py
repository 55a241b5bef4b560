from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.machine.generation_limits import GENERATION_LIMITS, GenerationLimits, measure_generation_limits
from bench.machine.machine import describe_machine
from bench.machine.peaks import MachinePeaks
from bench.machine.token_work import TokenWork, count_token_work
from bench.scenarios.generation import Generation
from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UsageError
from tests.bench.gguf_built import build_gguf

PEAKS = MachinePeaks(
    machine="a machine", threads=1, clock="CPU time", copy_gb_s=10, read_gb_s=10, reads=((1, 100), (1_000_000, 10)),
    fp32_gflop_s=100, int8_gop_s=400, library="onnxruntime",
)  # fmt: skip
WORK = TokenWork(
    weight_bytes=90_000_000, kv_bytes=100_000, kv_window=None, fp32_macs=0, int8_macs=100_000_000, head_macs=0,
    is_head_quantized=True, attention_macs=0,
)  # fmt: skip
LIMITS = GenerationLimits(
    artifact_digest="sha256:x", engine="an engine", work=WORK, peaks=PEAKS, mean_position=100, mean_prompt_tokens=50,
    tokens_per_second=61, prompt_tokens_per_second=500,
)  # fmt: skip


def generation(digest: str | None, *, answer_tokens: int = 4, threads: int = 1) -> Generation:
    """Two answers to prompts of 10 and 20 tokens: 100 ms to the first token and 50 ms to each other one."""
    at_ns = [(100 + 50 * step) * 1_000_000 for step in range(answer_tokens)] * 2
    return Generation(
        engine="llama.cpp",
        artifact_digest=digest,
        inputs="",
        max_tokens=answer_tokens,
        prompt_tokens=np.array([10, 20]),
        cpu_ns=np.full(2, (60 + 20 * (answer_tokens - 1)) * 1_000_000),
        first_cpu_ns=np.full(2, 60_000_000),
        request=np.repeat([0, 1], answer_tokens),
        at_ns=np.array(at_ns),
        tokens=np.ones(2 * answer_tokens, dtype=np.int64),
        has_text=np.ones(2 * answer_tokens, dtype=np.int64),
        is_settled=True,
        threads=threads,
        machine=describe_machine(),
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_gguf(tmp_path_factory.mktemp("model") / "a")


def test_generating_is_limited_by_the_bytes_that_a_token_reads() -> None:
    assert LIMITS.bytes_per_token == 90_000_000 + 100 * 100_000
    assert LIMITS.limit_tokens_per_second == pytest.approx(100)
    assert LIMITS.share == pytest.approx(0.61)
    assert LIMITS.sentence == "61 % of this machine's memory limit"


def test_reading_is_limited_by_arithmetic_and_a_very_short_prompt_by_memory() -> None:
    assert LIMITS.prompt_limit_tokens_per_second == pytest.approx(2000)  # 2e8 operations each, 4e11 a second
    assert LIMITS.prompt_sentence == "prompts at 25 % of this machine's limit, bound by int8 arithmetic"
    short = replace(LIMITS, mean_prompt_tokens=2)
    assert short.prompt_bound_by == "memory"
    assert short.prompt_limit_tokens_per_second == pytest.approx(2 / 0.009)
    floats = replace(LIMITS, work=replace(WORK, fp32_macs=100_000_000, int8_macs=0))
    assert floats.prompt_bound_by == "fp32 arithmetic"
    assert floats.prompt_limit_tokens_per_second == pytest.approx(500)


def test_more_than_the_limit_is_doubted() -> None:
    assert "measured while it was busy" in replace(LIMITS, tokens_per_second=200).sentence


def test_one_thread_is_held_against_its_peaks_in_cpu_time_and_more_in_wall_time(artifact: Artifact) -> None:
    one = measure_generation_limits(artifact, generation(artifact.digest), PEAKS)
    assert one.tokens_per_second == pytest.approx(50)
    assert one.prompt_tokens_per_second == pytest.approx(30 / 0.12)
    two = measure_generation_limits(artifact, generation(None, threads=2), replace(PEAKS, threads=2))
    assert two.tokens_per_second == pytest.approx(20)
    assert two.prompt_tokens_per_second == pytest.approx(30 / 0.2)
    assert one.work == count_token_work(artifact)


def test_the_mean_position_is_that_of_the_tokens_whose_keys_are_read(artifact: Artifact) -> None:
    """The second token of an answer is made while the prompt's keys are read, the third with one more."""
    limits = measure_generation_limits(artifact, generation(None), PEAKS)
    assert limits.mean_position == pytest.approx(np.mean([10, 11, 12, 20, 21, 22]))
    assert limits.mean_prompt_tokens == 15


def test_what_does_not_belong_together_is_refused(artifact: Artifact) -> None:
    with pytest.raises(UsageError, match="times of 2 threads cannot be held against peaks of 1"):
        measure_generation_limits(artifact, generation(None, threads=2), PEAKS)
    with pytest.raises(UsageError, match="the times are of sha256:other"):
        measure_generation_limits(artifact, generation("sha256:other"), PEAKS)
    with pytest.raises(UsageError, match="no answer has more than one token"):
        measure_generation_limits(artifact, generation(None, answer_tokens=1), PEAKS)


def test_limits_read_back_and_damage_is_refused(tmp_path: Path) -> None:
    LIMITS.save(tmp_path)
    assert GenerationLimits.load(tmp_path) == LIMITS
    value = json.loads((tmp_path / GENERATION_LIMITS).read_text())
    damages: tuple[dict[str, object], ...] = (
        {"share": 0.9},
        {"mean_prompt_tokens": 0},
        {"work": {}},
        {"work": value["work"] | {"weight_bytes": 0}},
        {"peaks": None},
        {"tokens_per_second": "fast"},
    )
    for broken in damages:
        (tmp_path / GENERATION_LIMITS).write_text(json.dumps(value | broken))
        with pytest.raises(ArtifactError, match=GENERATION_LIMITS):
            GenerationLimits.load(tmp_path)
