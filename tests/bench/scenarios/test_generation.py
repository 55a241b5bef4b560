from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench.machine.energy import EnergyMeter
from bench.machine.machine import describe_machine
from bench.scenarios import generate
from bench.scenarios.generate import GenerationOptions, measure_generation
from bench.scenarios.generation import CHUNKS, GENERATION, Generation
from edgesmith.errors import ArtifactError, DataError, UsageError
from export.reference_generation import TorchGenerationEngine
from serve.runtime import open_generation_engine
from serve.runtime.generation import TextChunk
from tests.bench.gguf_built import build_gguf
from tests.export.generators import bytes_tokenizer, save_chain

FEW = GenerationOptions(
    max_tokens=20, seconds=0.01, min_requests=6, max_requests=6, warm_up_tokens=4, max_warm_up_windows=3
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchGenerationEngine:
    """Writes `é🎉b` after an `a`, and nothing after a `z`."""
    ids = bytes_tokenizer().encode("aé🎉b").ids
    return TorchGenerationEngine(save_chain(tmp_path_factory.mktemp("chain"), dict(pairwise(ids))))


@pytest.fixture(scope="module")
def measured(engine: TorchGenerationEngine) -> Generation:
    return measure_generation(engine, ["a", "bca"], options=FEW, artifact_digest="sha256:chain")


def generation(at_ns: list[list[int]], texts: list[list[int]], prompt_tokens: list[int]) -> Generation:
    """Chunks of one token each at chosen moments."""
    counts = [len(row) for row in at_ns]
    return Generation(
        engine="engine",
        artifact_digest=None,
        inputs="",
        max_tokens=10,
        prompt_tokens=np.array(prompt_tokens),
        cpu_ns=np.array([sum(row) for row in at_ns]),
        request=np.repeat(np.arange(len(at_ns)), counts),
        at_ns=np.array([moment for row in at_ns for moment in row]),
        tokens=np.ones(sum(counts), dtype=np.int64),
        has_text=np.array([flag for row in texts for flag in row]),
        is_settled=True,
        threads=1,
        machine=describe_machine(),
    )


def test_bounds_count_gaps_of_one_request_for_less() -> None:
    """Ten slow answers and thirty fast ones: forty events, not 400."""
    gaps = [[10] * 10 if index % 4 else [30] * 10 for index in range(40)]
    at_ns = [np.cumsum(row).tolist() for row in gaps]
    given = generation(at_ns, [[1] * 10] * 40, [3] * 40)
    bounds = given.percentile("itl", 90, 0.95)
    assert bounds.num_samples == 360
    assert bounds.inflation > 3
    steady = generation([np.cumsum([10, 11] * 5).tolist()] * 40, [[1] * 10] * 40, [3] * 40)
    assert steady.percentile("itl", 90, 0.95).inflation == 1
    ramp = generation([[100 * (1 + index)] for index in range(40)], [[1]] * 40, [3] * 40)
    assert ramp.percentile("ttft", 50, 0.95).inflation > 3


def test_every_chunk_of_every_request_is_kept(measured: Generation) -> None:
    assert measured.num_requests == 6
    assert measured.prompt_tokens.tolist() == [1, 3] * 3
    assert measured.generated_tokens.tolist() == [8] * 6
    assert measured.has_text.reshape(6, 8).tolist() == [[0, 1, 0, 0, 0, 1, 1, 0]] * 6
    assert np.all(np.diff(measured.at_ns.reshape(6, 8), axis=1) > 0)


def test_time_to_first_text_is_not_that_to_a_token_without_text(measured: Generation) -> None:
    at_ns = measured.at_ns.reshape(6, 8)
    assert np.array_equal(measured.first_token_ns, at_ns[:, 0])
    assert np.array_equal(measured.ttft_ns, at_ns[:, 1])


def test_figures_follow_from_the_moments() -> None:
    given = generation([[100, 150, 250], [200, 240], [50]], [[0, 1, 1], [1, 1], [0]], [10, 20, 5])
    assert given.ttft_ns.tolist() == [150, 200, np.inf]
    assert given.itl_ns.tolist() == [50, 100, 40]
    assert given.tpot_ns.tolist() == [75, 40]
    assert given.generated_tokens.tolist() == [3, 2, 1]
    assert given.prompt_tokens_per_second == pytest.approx(35 / 350e-9)
    assert given.generated_tokens_per_second == pytest.approx(3 / 190e-9)
    assert given.cpu_ms_per_token == pytest.approx((500 + 440 + 50) / 1e6 / 6)
    assert given.summary()["num_without_text"] == 1


def test_an_answer_without_text_is_later_than_every_limit() -> None:
    given = generation([[100]] * 6 + [[50]], [[1]] * 6 + [[0]], [1] * 7)
    bounds = given.percentile("ttft", 50, 0.99)
    assert bounds.upper == np.inf  # 7 answers certify no better than the slowest
    assert given.summary()["ttft_bounds_ms"]["p50"]["upper"] is None
    assert given.generated_tokens_per_second is None


def test_a_figure_that_there_is_not_is_refused(measured: Generation) -> None:
    with pytest.raises(UsageError, match="Use ttft, tpot or itl"):
        measured.percentile("ttfb", 50)


class Meterable:
    """An engine whose text between the prompts takes 10 J and whose answers take 2 J, as the kernel's counter says."""

    def __init__(self, engine: TorchGenerationEngine, counter: Path) -> None:
        self.engine, self.counter = engine, counter
        self.name = engine.name

    def generate(self, prompt: str, *, max_tokens: int) -> Iterator[TextChunk]:
        spent = 10_000_000 if prompt == generate._OTHER_TEXT else 2_000_000
        self.counter.write_text(f"{int(self.counter.read_text()) + spent}\n")
        yield from self.engine.generate(prompt, max_tokens=max_tokens)

    def count_prompt_tokens(self, prompt: str) -> int:
        return self.engine.count_prompt_tokens(prompt)


def test_energy_is_that_of_the_timed_answers(
    engine: TorchGenerationEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("0\n")
    (zone / "max_energy_range_uj").write_text(f"{10**12}\n")
    monkeypatch.setattr(generate, "EnergyMeter", partial(EnergyMeter, tmp_path))
    found = measure_generation(Meterable(engine, zone / "energy_uj"), ["a", "bca"], options=FEW)  # type: ignore[arg-type]
    assert found.energy_mj == pytest.approx(2000 / 8)  # answers of 8 tokens
    monkeypatch.setattr(generate, "EnergyMeter", partial(EnergyMeter, tmp_path / "nowhere"))
    assert measure_generation(engine, ["a"], options=FEW).energy_mj is None


def test_what_was_measured_reads_back(measured: Generation, tmp_path: Path) -> None:
    measured.save(tmp_path)
    read = Generation.load(tmp_path)
    assert read.summary() == measured.summary()
    assert np.array_equal(read.at_ns, measured.at_ns)


def test_damage_is_refused(measured: Generation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no generation\.json"):
        Generation.load(tmp_path)
    measured.save(tmp_path)
    value = json.loads((tmp_path / GENERATION).read_text())
    damages: tuple[dict[str, object], ...] = (
        {"num_requests": 7},
        {"generated_tokens": [1]},
        {"prompt_tokens": None},
        {"machine": {}},
    )
    for broken in damages:
        (tmp_path / GENERATION).write_text(json.dumps(value | broken))
        with pytest.raises(ArtifactError, match=GENERATION):
            Generation.load(tmp_path)
    (tmp_path / CHUNKS).write_bytes(b"")
    with pytest.raises(ArtifactError, match=CHUNKS):
        Generation.load(tmp_path)


def test_no_prompts_and_too_long_ones_are_refused(engine: TorchGenerationEngine) -> None:
    with pytest.raises(DataError):
        measure_generation(engine, [], options=FEW)
    with pytest.raises(UsageError, match="more together than the 96"):
        measure_generation(engine, ["a" * 90], options=FEW)
    with pytest.raises(UsageError, match="max_tokens"):
        replace(FEW, max_tokens=0)


def test_cpu_time_is_split_at_the_first_token(measured: Generation) -> None:
    assert measured.first_cpu_ns is not None
    assert np.all(measured.first_cpu_ns > 0)
    assert np.all(measured.first_cpu_ns < measured.cpu_ns)
    given = replace(generation([[100, 150, 250], [200]], [[1, 1, 1], [1]], [10, 20]), first_cpu_ns=np.array([80, 160]))
    assert given.prompt_tokens_per_cpu_second == pytest.approx(30 / 240e-9)
    assert given.generated_tokens_per_cpu_second == pytest.approx(2 / (500 - 80 + 200 - 160) * 1e9)
    assert replace(given, num_reused_tokens=6).prompt_tokens_per_cpu_second == pytest.approx(24 / 240e-9)
    assert replace(given, num_reused_tokens=6).prompt_tokens_per_second == pytest.approx(24 / 300e-9)
    assert generation([[100]], [[1]], [3]).generated_tokens_per_cpu_second is None


def test_lengths_are_named_as_llama_bench_names_them(measured: Generation) -> None:
    assert (measured.prompt_test, measured.generation_test) == ("pp1-3", "tg8 @ d1-3")
    same = generation([[1, 2], [1, 2]], [[1, 1]] * 2, [512, 512])
    assert (same.prompt_test, same.generation_test) == ("pp512", "tg2 @ d512")


def test_answers_that_end_early_are_left_out_where_all_are_to_be_as_long(engine: TorchGenerationEngine) -> None:
    fixed = replace(FEW, max_tokens=5, is_fixed_length=True)
    both = measure_generation(engine, ["a", "z"], options=fixed)
    assert both.generated_tokens.tolist() == [5] * 6
    assert both.prompt_tokens.tolist() == [1] * 6
    assert both.num_discarded == 5  # between six answers to the other prompt
    with pytest.raises(DataError, match="7 of 7 answers ended before the 5 tokens wanted"):
        measure_generation(engine, ["z"], options=fixed)


def test_prompts_can_be_cut_to_a_length(engine: TorchGenerationEngine) -> None:
    cut = measure_generation(engine, ["some words of one text", "and another"], options=replace(FEW, prompt_tokens=9))
    assert cut.prompt_tokens.tolist() == [9] * 6
    assert "prompts cut from real texts, of 9 to 9 tokens" in cut.inputs


def test_a_prompt_asked_again_is_read_again(tmp_path: Path) -> None:
    """llama.cpp keeps what it read: the same prompt twice in a row would be read once."""
    with_cache = open_generation_engine(build_gguf(tmp_path))
    from serve.runtime.gguf_engine import LlamaEngine

    assert isinstance(with_cache, LlamaEngine)
    prompt = "It was the best of times"
    for _ in range(2):
        list(with_cache.generate(prompt, max_tokens=1))
    num_tokens = with_cache.count_prompt_tokens(prompt)
    assert with_cache.num_reused_tokens == num_tokens - 1
    measured = measure_generation(with_cache, [prompt], options=replace(FEW, max_tokens=2))
    assert measured.num_reused_tokens == 0
    assert measured.prompt_tokens.tolist() == [num_tokens] * 6
    with_cache.close()
