"""Measure what quantization to GGUF and ONNX costs and brings, on SmolLM2-135M and Moby-Dick.

    python tools/measure_gguf.py

converts, quantizes, measures, and prints a Markdown table and the limits that must be kept; it ends with 1 if one is
not, with 3 if the text or the pairs are too few to say of one. What was built is kept in the work folder by the
checkpoint, what was measured by the model, the text, and the code that measures. `--only quality speed` measures a
part; the table then shows what earlier runs of the same code found of the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from gguf_models import (
    ALLOCATED,
    PRESETS,
    WEIGHTED,
    Built,
    Workshop,
    checkpoint_key,
    default_checkpoint,
    read_book,
    take_off_grid,
)

from bench.language.evaluation import LanguageEvaluation
from bench.language.intervals import MIN_BOUNDED, bound_mean
from bench.language.measure import measure_language
from bench.language.reference import Reference, record_reference
from bench.machine.generation_limits import GenerationLimits, measure_generation_limits
from bench.machine.machine import describe_machine
from bench.machine.peaks import measure_peaks
from bench.scenarios.generate import GenerationOptions, measure_generation
from bench.scenarios.generation import Generation
from bench.scenarios.start import Start, measure_start
from bench.stats.binomial import t_quantile
from edgesmith.errors import EdgesmithError, UsageError
from edgesmith.store import code_digest
from serve.runtime import EngineOptions, open_generation_engine

T = TypeVar("T")
PARTS = ("quality", "imatrix", "allocation", "genai", "speed", "direct")
CONFIDENCE = 0.975
TOO_FEW = f"fewer than {MIN_BOUNDED} windows bound nothing"
NUM_STARTS = 3
MEASURED_BY = (
    "bench.language.measure", "bench.language.reference", "bench.machine.generation_limits",
    "bench.scenarios.generate", "bench.scenarios.start",
)  # fmt: skip
"""What was measured by other code is not shown: these modules, and all of ours that they need."""
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
DIRECT_TOKENS, DIRECT_PAIRS = 64, 12
LEAST_SPEED = 0.97


@dataclass(frozen=True)
class Check:
    """Something that must be reached."""

    what: str
    found: str
    outcome: str


class Session:
    """Measures what is built, and keeps it beside."""

    def __init__(self, shop: Workshop, arguments: argparse.Namespace) -> None:
        self.shop, self.arguments = shop, arguments
        self.windows = shop.windows(arguments.length, arguments.windows, is_held_out=True)
        self.rows: dict[str, Built] = {}
        self.code = hashlib.sha256("".join(map(code_digest, MEASURED_BY)).encode()).hexdigest()[:12]

    def folder(self, built: Built) -> Path:
        """Where measurements of a model are kept: by its bytes, the text, the threads and the code that measures."""
        key = f"{built.artifact.digest[7:19]}-{self.windows.digest[7:15]}-{self.arguments.threads}"
        return self.shop.work / "measured" / self.code / key

    def reference(self) -> Reference:
        """The torch model on the held-out windows."""
        folder = self.shop.work / "measured" / self.code / f"torch-{self.windows.digest[7:19]}"
        try:
            return Reference.load(folder)
        except UsageError:
            pass
        from export.reference_generation import TorchGenerationEngine

        say("reading the held-out text with torch")
        engine = TorchGenerationEngine(self.shop.checkpoint, threads=self.arguments.threads)
        folder.mkdir(parents=True, exist_ok=True)
        found = record_reference(engine, self.windows)
        found.save(folder)
        engine.close()
        return found

    def measure_quality(self, built: Built, reference: Reference) -> None:
        """Losses and divergence on the held-out windows."""
        if load(LanguageEvaluation, self.folder(built)) is not None:
            return
        start = time.perf_counter()
        engine = open_generation_engine(built.artifact, EngineOptions(threads=self.arguments.threads))
        try:
            found = measure_language(engine, reference, artifact_digest=built.artifact.digest)
        finally:
            engine.close()
        self.folder(built).mkdir(parents=True, exist_ok=True)
        found.save(self.folder(built))
        say(f"{built.name}: mean KLD {found.mean_kld().value:.3g} ({time.perf_counter() - start:.0f} s)")

    def measure_speed(self, built: Built) -> None:
        """Prompts and answers of fixed lengths, fresh processes, and the share of the machine's limits."""
        folder, threads = self.folder(built), self.arguments.threads
        earlier = load(Generation, folder)
        if earlier and load(GenerationLimits, folder) and self._is_asked(earlier) and not self.arguments.again:
            return
        options = GenerationOptions(
            prompt_tokens=self.arguments.prompt_tokens,
            max_tokens=self.arguments.answer_tokens,
            is_fixed_length=True,
            seconds=self.arguments.seconds,
            min_requests=5,
            max_requests=64,
            max_warm_up_windows=4,
        )
        start = time.perf_counter()
        engine = open_generation_engine(built.artifact, EngineOptions(threads=threads))
        try:
            found = measure_generation(
                engine, [self.shop.held_out], options=options, artifact_digest=built.artifact.digest, threads=threads
            )
        finally:
            engine.close()
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder)
        measure_start(built.artifact.path, threads=threads, num_starts=NUM_STARTS).save(folder)
        peaks = measure_peaks(threads=threads, cache=self.shop.work / "peaks.json")
        limits = measure_generation_limits(built.artifact, found, peaks)
        limits.save(folder)
        say(f"{built.name}: {limits.tokens_per_second:.1f} tokens/s ({time.perf_counter() - start:.0f} s)")

    def _is_asked(self, found: Generation) -> bool:
        """Whether it was measured with the lengths that are asked for."""
        wanted = self.arguments.prompt_tokens, self.arguments.answer_tokens
        return (int(found.prompt_tokens.max()), found.max_tokens) == wanted

    def quality(self, name: str) -> LanguageEvaluation | None:
        """What was measured of a model."""
        built = self.rows.get(name)
        return load(LanguageEvaluation, self.folder(built)) if built else None


def load(kind: type[T], folder: Path) -> T | None:
    """What an earlier run measured, if it did."""
    try:
        return kind.load(folder)  # type: ignore[attr-defined, no-any-return]
    except (UsageError, OSError):
        return None


def say(text: str) -> None:
    """Tell what is being done."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def models(shop: Workshop, parts: Sequence[str], presets: Sequence[str]) -> Iterator[Built]:
    """What the parts asked for compare."""
    if {"quality", "speed"} & set(parts):
        yield from shop.floats()
    if {"quality", "speed", "imatrix", "allocation"} & set(parts):
        yield from shop.presets(presets, with_imatrix=True)
    if "imatrix" in parts:
        yield from shop.presets([name for name in presets if name in WEIGHTED], with_imatrix=False)
    if "allocation" in parts:
        yield from shop.allocations([name for name in presets if name in ALLOCATED])
    if "genai" in parts:
        yield from shop.genai()


def compare_directly(path: Path, *, threads: int, prompt: str) -> tuple[list[float], list[float]]:
    """Generation speed of our engine over that of llama-cpp-python called directly, answer by answer in turn.

    Returns:
        For every pair direct over ours, so that more than 1 is faster: of CPU time, and of wall time.
    """
    import llama_cpp

    from edgesmith.artifact import open_artifact

    engine = open_generation_engine(open_artifact(path), EngineOptions(threads=threads))
    direct = llama_cpp.Llama(
        str(path), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    tokens = direct.tokenize(prompt.encode())
    cpu, wall = [], []
    for index in range(DIRECT_PAIRS + 2):
        ours = lambda: engine.generate(prompt, max_tokens=DIRECT_TOKENS)  # noqa: E731
        theirs = lambda: direct.generate(tokens, temp=0.0)  # noqa: E731
        first, second = (ours, theirs) if index % 2 else (theirs, ours)
        spent = {one: _time_tokens(one()) for one in (first, second)}
        if index >= 2:
            cpu.append(spent[theirs][0] / spent[ours][0])
            wall.append(spent[theirs][1] / spent[ours][1])
    engine.close()
    direct.close()
    return cpu, wall


def _time_tokens(answer: Iterator[object]) -> tuple[float, float]:
    """CPU and wall seconds for each token after the first."""
    next(answer)
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    for _ in answer:
        count += 1
        if count == DIRECT_TOKENS - 2:
            break
    return (time.process_time() - cpu) / max(1, count), (time.perf_counter() - wall) / max(1, count)


HEAD = (
    "model", "MB", "bits per weight", "perplexity ratio", "mean KLD (97.5 % bounds)", "same top", "prompt tokens/s",
    "generated tokens/s", "CPU ms a token", "share of memory limit", "peak memory, MB", "without mapped files",
    "first token after, ms",
)  # fmt: skip


def row(session: Session, built: Built) -> str:
    """One line of the table; an empty cell was not measured."""
    folder = session.folder(built)
    quality, speed = load(LanguageEvaluation, folder), load(Generation, folder)
    limits, start = load(GenerationLimits, folder), load(Start, folder)
    cells = [built.name, f"{built.artifact.model_bytes / 1e6:.1f}", f"{built.bits_per_weight:.2f}"]
    if quality:
        ratio, kld, same = quality.perplexity_ratio(), quality.mean_kld(), quality.same_top_rate()
        bounds = "" if kld.lower is None or kld.upper is None else f" ({kld.lower:.3g} … {kld.upper:.3g})"
        cells += [
            f"{ratio.value:.5f} ± {ratio.error or 0:.5f}",
            f"{kld.value:.3g}{bounds}",
            f"{100 * same.value:.2f} %",
        ]
    else:
        cells += [""] * 3
    if speed and limits:
        rate = speed.generated_tokens_per_cpu_second
        cells += [f"{speed.prompt_tokens_per_second:.0f}", f"{speed.generated_tokens_per_second:.1f}"]
        cells += [f"{1e3 / rate:.1f}" if rate else "", f"{100 * limits.share:.0f} %"]
    else:
        cells += [""] * 4
    if start:
        private = start.private_bytes
        cells += [f"{start.peak_rss_bytes / 1e6:.0f}", f"{private / 1e6:.0f}" if private else ""]
        cells += [f"{start.cold_start_ms:.0f}"]
    else:
        cells += [""] * 3
    return "| " + " | ".join(cells) + " |"


def checks(session: Session) -> Iterator[Check]:
    """What must be reached, of what was measured."""
    for name, most, least_same in (("f32", 2e-5, 0.995), ("f16", 3e-5, None)):
        if found := session.quality(name):
            kld = found.mean_kld()
            yield limit(f"{name} against torch: mean KLD ≤ {most:g}", kld.value, kld.lower, kld.upper, most)
            if least_same is not None:
                same = found.same_top_rate()
                what = f"{name} against torch: same top ≥ {100 * least_same:g} %"
                yield limit(what, same.value, same.lower, same.upper, least_same, at_least=True)
    for name, most in (("Q8_0", 1.001), ("Q6_K + imatrix", 1.005), ("Q4_K_M + imatrix", 1.03)):
        if found := session.quality(name):
            ratio = found.perplexity_ratio()
            yield limit(f"{name}: perplexity ratio ≤ {most:g}", ratio.value, ratio.lower, ratio.upper, most)
    for preset in WEIGHTED:
        plain, weighted = session.quality(preset), session.quality(f"{preset} + imatrix")
        if plain and weighted:
            yield gain(f"{preset}: mean KLD lower with the importance matrix", weighted, plain, 1.0)
    for name, built in session.rows.items():
        if built.kind == "chosen":
            chosen, preset_found = session.quality(name), session.quality(f"{built.preset} + imatrix")
            if chosen and preset_found:
                yield gain(f"{name}: mean KLD ≥ 10 % lower", chosen, preset_found, 0.9)


def limit(
    what: str, value: float, lower: float | None, upper: float | None, border: float, *, at_least: bool = False
) -> Check:
    """Hold an estimate and its bounds against a limit: PASS or FAIL where both bounds are on one side of it.

    Without bounds nothing is known for certain, whatever the estimate.
    """
    sign = -1 if at_least else 1
    worst, best = (lower, upper) if at_least else (upper, lower)
    if worst is None or best is None:
        outcome, shown = "INCONCLUSIVE", f"{value:.6g}; {TOO_FEW}"
    else:
        is_inside, is_outside = sign * worst <= sign * border, sign * best > sign * border
        outcome = "PASS" if is_inside else "FAIL" if is_outside else "INCONCLUSIVE"
        shown = f"{value:.6g} ({lower:.6g} … {upper:.6g})"
    return Check(what, shown, outcome)


def gain(what: str, better: LanguageEvaluation, worse: LanguageEvaluation, most: float) -> Check:
    """Whether a mean divergence is at most `most` times another one's, window by window on the same text."""
    ours, theirs = (np.asarray(one.kld, dtype=np.float64) for one in (better, worse))
    found = bound_mean(most * theirs - ours, confidence=CONFIDENCE)
    ratio = float(ours.mean() / theirs.mean())
    shown = f"{better.mean_kld().value:.4g} against {worse.mean_kld().value:.4g}, {100 * (1 - ratio):.1f} % lower"
    if found is None:
        return Check(what, f"{shown}; {TOO_FEW}", "INCONCLUSIVE")
    outcome = "PASS" if found.lower >= 0 else "FAIL" if found.upper < 0 else "INCONCLUSIVE"
    if outcome == "INCONCLUSIVE":
        shown += f"; {found.lower:.2g} … {found.upper:.2g} from the limit"
    return Check(what, shown, outcome)


def compare(session: Session) -> Check:
    """Our engine beside llama-cpp-python."""
    threads = session.arguments.threads
    prompt = session.shop.held_out[:400]
    cpu, wall = compare_directly(
        next(session.shop.presets(("Q4_K_M",), with_imatrix=True)).artifact.path, threads=threads, prompt=prompt
    )
    what = f"Q4_K_M, {threads} threads: generation within 3 % of llama-cpp-python called directly"
    found = pairs(what, wall, LEAST_SPEED)
    return Check(what, f"{found.found} times its speed; {statistics.median(cpu):.3f} in CPU time", found.outcome)


def pairs(what: str, ratios: Sequence[float], least: float) -> Check:
    """Hold the typical ratio of pairs against a limit: Student's t over their logarithms, which a jump pulls less."""
    logs = np.log(ratios)
    mean, n = float(logs.mean()), len(logs)
    reach = t_quantile(CONFIDENCE, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
    lower, upper = (math.exp(one) for one in (mean - reach, mean + reach))
    return limit(what, math.exp(mean), lower, upper, least, at_least=True)


def exit_code(checks: Sequence[Check]) -> int:
    """1 if a limit is broken, else 3 if it is open whether one is kept."""
    found = {check.outcome for check in checks}
    return next((EXIT_CODES[one] for one in ("FAIL", "INCONCLUSIVE") if one in found), 0)


def main() -> int:
    """Run what the command line asks for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, help="types to compare")
    parser.add_argument("--checkpoint", type=Path, help="another model than SmolLM2-135M-Instruct")
    parser.add_argument("--on-grid", action="store_true", help="SmolLM2's 4-bit weights as they are, see take_off_grid")
    parser.add_argument("--text", type=Path, help="another text than Moby-Dick; its last fifth is held out")
    parser.add_argument("--work", type=Path, default=Path("out/bench-gguf"), help="where what is built is kept")
    parser.add_argument("--windows", type=int, default=16, help="held-out windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=12.0, help="of timed answers of one model")
    parser.add_argument("--again", action="store_true", help="time again what was timed before")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else read_book()
    checkpoint, work = arguments.checkpoint, arguments.work / ("on-grid" if arguments.on_grid else "models")
    if checkpoint is None:
        checkpoint = default_checkpoint()
        if not arguments.on_grid:
            checkpoint = take_off_grid(checkpoint, arguments.work / "checkpoint")
    shop = Workshop(checkpoint, text, work / checkpoint_key(checkpoint), threads=arguments.threads)
    session = Session(shop, arguments)
    for built in models(shop, arguments.only, arguments.presets):
        session.rows[built.name] = built
        if {"quality", "imatrix", "allocation", "genai"} & set(arguments.only):
            session.measure_quality(built, session.reference())
        if "speed" in arguments.only:
            session.measure_speed(built)
    found = list(checks(session))
    if "direct" in arguments.only:
        found.append(compare(session))
    report(session, found, time.perf_counter() - begin)
    return exit_code(found)


def report(session: Session, found: Sequence[Check], seconds: float) -> None:
    """Print the tables."""
    arguments, windows = session.arguments, session.windows
    model = (
        arguments.checkpoint or f"SmolLM2-135M-Instruct, weights {'on' if arguments.on_grid else 'off'} the 4-bit grid"
    )
    lines = [
        f"{model}.",
        f"{describe_machine().summary}; {arguments.threads} threads; {windows.num_windows} held-out windows of "
        f"{windows.length} tokens, {windows.num_windows * windows.num_scored:,} scored; prompts of "
        f"{arguments.prompt_tokens} and answers of {arguments.answer_tokens} tokens; {seconds:.0f} s.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
        *(row(session, built) for built in session.rows.values()),
        "",
        "| must reach | found | |",
        "| --- | --- | --- |",
        *(f"| {check.what} | {check.found} | {check.outcome} |" for check in found),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    summary = [{"what": check.what, "found": check.found, "outcome": check.outcome} for check in found]
    (session.shop.work / "checks.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesmithError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
