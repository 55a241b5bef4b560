"""Load tests of running servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from bench.gates.verdict import Verdict
    from bench.load import LoadPlan, LoadResult, RateSearch, Shape
    from edgesmith.artifact import Artifact

__all__ = ["LoadTest", "load", "load_worker"]

SERVED_NAME = "model"
_MAX_STEP_S = 90.0
_USUAL_S = 20.0
_EXPECTED_SLOW = 3


@dataclass(frozen=True, kw_only=True)
class LoadTest:
    """What a load test saw, and what is to be thought of it."""

    result: LoadResult
    """Of a search, the load at the highest rate that passed, or the last one."""
    search: RateSearch | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    """One if a limit was given."""

    @property
    def outcome(self) -> str:
        """The verdict; without a limit PASS where every request was answered, rightly and at the asked rate."""
        if self.search is not None:
            if self.search.highest_pass is not None:
                return "PASS"
            return "INCONCLUSIVE" if self.search.lowest_fail is None else "FAIL"
        if self.verdicts:
            return self.verdicts[0].verdict.value
        if self.result.num_failed and not self.is_interrupted:
            return "FAIL"
        return "PASS" if self.result.is_open_loop_kept else "INCONCLUSIVE"

    @property
    def is_interrupted(self) -> bool:
        """Whether the user ended it early."""
        from bench.load.result import INTERRUPTED

        return self.result.stopped_because == INTERRUPTED

    @property
    def reason(self) -> str:
        """Why, where no limit was given."""
        result = self.result
        if self.outcome == "FAIL":
            return f"{result.num_failed:,} of {result.num_requests:,} requests failed"
        if self.outcome == "INCONCLUSIVE":
            return result.why_not_kept
        return f"all {result.num_requests:,} requests were answered; --limit-ms judges how fast"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "load": self.result.summary(),
            "search": None if self.search is None else self.search.summary(),
            "gates": [verdict.to_json() for verdict in self.verdicts],
        }


def load(
    url: str,
    *,
    rate: float = 10.0,
    duration: float | None = None,
    shape: str = "constant",
    peak_rate: float | None = None,
    search: bool = False,
    limit_ms: float | None = None,
    percentile: float = 99.0,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    artifact: Path | None = None,
    model: str | None = None,
    batch_size: int = 1,
    stream: bool = True,
    max_tokens: int = 64,
    timeout: float = 30.0,
    headers: Mapping[str, str] | None = None,
    processes: int = 1,
    expect_workers: int = 0,
    master_host: str = "127.0.0.1",
    master_port: int | None = None,
    web_port: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> LoadTest:
    """Load-test a server that speaks the Open Inference Protocol or OpenAI's, or an artifact behind our own.

    Args:
        url: The model's URL (`…/v2/models/NAME`), an OpenAI base (`…/v1`), or the path of an artifact, which is then
            served on loopback for as long as the test takes.
        rate: Requests that arrive in a second.
        duration: Seconds; of a search, those of one step at least. Left out, 20, or as many as it takes to judge the
            percentile.
        shape: `constant`, `soak`, `ramp` (from `rate` to `peak_rate`) or `spike` (to `peak_rate` for a while).
        peak_rate: Highest rate of a ramp or a spike.
        search: Find the highest rate that meets `limit_ms`, from `rate` on.
        limit_ms: The most that the percentile may be; judged.
        percentile: Which one.
        data: Rows that become requests; packaged sentences if left out.
        columns: What a request needs → the file's column.
        artifact: What the server runs: its tokenizer makes the inputs, and the result is its evidence.
        model: Its name where the URL does not say it.
        batch_size: Rows in one request.
        stream: Ask for generated tokens one by one.
        max_tokens: Tokens of a generated answer.
        timeout: Seconds after which a request has failed.
        headers: Further ones of each request.
        processes: Processes that send.
        expect_workers: Workers of other machines to wait for instead.
        master_host: Address on which they are awaited.
        master_port: Port of that address; Locust's 5557 if left out.
        web_port: Port of Locust's web page, on loopback only.
        out: Folder for the samples.
        seed: Of arrivals and of the rows' draw.
        threads: Of the engine of an artifact that is served here.
        progress: Shows how far it is.

    Raises:
        UsageError: an option cannot be obeyed.
        ServerError: the server cannot be reached, or speaks no protocol known here.
        DataError: a row does not become a request.
    """
    from bench.load import LoadPlan

    if search and limit_ms is None:
        raise UsageError("--search needs --limit-ms: the time that the percentile must meet")
    seconds = duration or _usual_seconds(rate, percentile if limit_ms is not None and not search else None, progress)
    if search and (shape != "constant" or seconds > _MAX_STEP_S):
        raise UsageError(f"--search holds constant rates for at most {_MAX_STEP_S:g} s each: no --shape, no longer one")
    with _server(url, artifact, threads, progress) as (address, runs):
        plan = LoadPlan(
            url=address,
            shape=_shape(shape, rate, seconds, peak_rate),
            data=data,
            model=model or (SERVED_NAME if address is not url else None),
            encoder=runs,
            is_served_here=address is not url,
            columns=columns or {},
            batch_size=batch_size,
            stream=stream,
            max_tokens=max_tokens,
            headers=headers or {},
            seed=seed,
            timeout_s=timeout,
            limit_ms=limit_ms,
            limit_percentile=percentile,
            processes=processes,
            expect_workers=expect_workers,
            master_host=master_host,
            master_port=master_port,
            web_port=web_port,
        )
        if out is not None and runs is None:
            progress.note("the evidence names no artifact, so no gate finds it: --artifact says what the server runs")
        return _search(plan, rate, seconds, out, progress) if search else _load(plan, runs, out, progress)


@contextmanager
def _server(url: str, artifact: Path | None, threads: int, progress: Progress) -> Iterator[tuple[str, Path | None]]:
    """Whom to send to, and what runs there: a server that the user names, or ours with the artifact that they name."""
    if "://" in url or not Path(url).exists():
        yield url, artifact
        return
    from edgesmith.artifact import open_artifact
    from edgesmith.releases import locate_target
    from edgesmith.stages.engines import GENERATES
    from edgesmith.stages.served import served, served_route

    if artifact is not None:
        raise UsageError(f"{url}: is served for this test, and --artifact names what a running server has")
    opened = open_artifact(locate_target(Path(url), Path(url).resolve().name), kinds=("onnx", *GENERATES))
    progress.note(f"serving {opened.path} on loopback, {threads} thread(s)")
    with served(opened, name=SERVED_NAME, options=["--threads", str(threads)]) as address:
        yield address + served_route(opened, SERVED_NAME), opened.path


def load_worker(master: str, *, progress: Progress = SILENT) -> None:
    """Send for a load test that another terminal or machine runs with `expect_workers`, until it is over.

    Args:
        master: Its host, or `host:port`.
        progress: Says what it does.

    Raises:
        UsageError: the port is no number.
    """
    from bench.load import run_worker

    host, _, port = master.removeprefix("http://").rstrip("/").partition(":")
    if port and not port.isdigit():
        raise UsageError(f"{master}: must be HOST or HOST:PORT of the master")
    run_worker(host, int(port), progress=progress) if port else run_worker(host, progress=progress)


def _usual_seconds(rate: float, percentile: float | None, progress: Progress) -> float:
    """How long a load lasts that the user gave no duration for: long enough to judge the percentile, if any."""
    from bench.load import LoadPlan
    from bench.stats.percentiles import required_samples

    if percentile is None or not 0 < percentile < 100:  # the plan refuses it
        return _USUAL_S
    needed = required_samples(percentile, LoadPlan.confidence, _EXPECTED_SLOW) / rate
    if needed > _USUAL_S:
        progress.note(f"p{percentile:g} is judged: {needed:.0f} s at {rate:g} requests/s; --duration takes other ones")
    return max(_USUAL_S, needed)


def _shape(name: str, rate: float, seconds: float, peak_rate: float | None) -> Shape:
    from bench.load import constant, ramp, soak, spike

    if name in ("ramp", "spike") and peak_rate is None:
        raise UsageError(f"--shape {name} needs --peak-rate")
    if name not in ("ramp", "spike") and peak_rate is not None:
        raise UsageError(f"--peak-rate means nothing to --shape {name}", mend="Use it with --shape ramp or spike.")
    match name:
        case "constant":
            return constant(rate, seconds)
        case "soak":
            return soak(rate, seconds)
        case "ramp":
            return ramp(rate, peak_rate or rate, seconds)
        case "spike":
            return spike(rate, peak_rate or rate, seconds)
    raise UsageError(f"--shape {name}: unknown; use constant, soak, ramp or spike")


def _load(plan: LoadPlan, artifact: Path | None, out: Path | None, progress: Progress) -> LoadTest:
    from bench.gates.latency import judge_load_latency
    from bench.load import LoadResult
    from edgesmith.artifact import open_artifact
    from edgesmith.gates import LatencyGate
    from edgesmith.stages.base import make_into
    from edgesmith.stages.load import LoadStage

    opened: Artifact | None = open_artifact(artifact) if artifact else None
    stage = LoadStage(plan=plan, artifact=opened)
    with TemporaryDirectory(prefix="edgesmith-") as temporary:
        if out is not None:
            folder = make_into(stage, out, lambda _: None, progress)[0].path
        else:
            folder = stage.make(Path(temporary), progress).path
        result = LoadResult.load(folder)
    if plan.limit_ms is None:
        return LoadTest(result=result)
    gate = LatencyGate(
        scenario="load", percentile=plan.limit_percentile, max_ms=plan.limit_ms, confidence=plan.confidence
    )
    return LoadTest(result=result, verdicts=[judge_load_latency(gate, result)])


def _search(plan: LoadPlan, rate: float, duration: float, out: Path | None, progress: Progress) -> LoadTest:
    from bench.load import SearchOptions, find_rate
    from bench.load.search import SEARCH

    if out is not None and out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / SEARCH).is_file())):
        raise UsageError(f"{out}: is there already and is no search for a rate", mend="Choose another folder.")
    options = SearchOptions(start_rate=rate, min_step_s=duration, max_step_s=_MAX_STEP_S)
    found = find_rate(plan, options=options, out=out, progress=progress)
    best = [step for step in found.steps if step.rate == found.highest_pass] or list(found.steps)
    return LoadTest(result=best[-1].result, search=found)
