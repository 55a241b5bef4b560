"""Measured figures as tables: every percentile beside its bounds, or beside the number of requests that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgesmith.cli.show import show_verdicts

if TYPE_CHECKING:
    from edgesmith.api.load import LoadTest

__all__ = ["show_load", "show_measured"]


def show_measured(result: Mapping[str, Any], json: bool) -> None:
    """Show what `bench` measured, or `eval` of a language model."""
    from edgesmith import console

    if json:
        console.print_json(result)
        return
    for name, figures in result.items():
        _SHOWN[name](figures)


def show_load(test: LoadTest, json: bool) -> None:
    """Show what `load` saw."""
    from edgesmith import console

    if json:
        console.print_json({"verdict": test.outcome, **test.to_json()})
        return
    _show_load(test.result.summary())
    if test.search is not None:
        rows = [(f"{step.rate:,.4g}", step.outcome.value, step.reason) for step in test.search.steps]
        console.print_table(("requests/s", "verdict", "reason"), rows)
        console.say(f"{test.outcome}: {test.search.sentence}")
    show_verdicts(test.verdicts)
    if not test.search and not test.verdicts:
        console.say(f"{test.outcome}: {test.reason}")


def _latency(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    how = f"{figures['scenario']}"
    if figures["rate"]:
        how += f", {figures['rate']:.4g} requests/s arrive at random ({figures['rate_source']})"
    console.say(
        f"{how}: {figures['num_requests']:,} requests, {figures['inputs']}, {figures['threads']} thread(s), "
        f"{figures['engine']}"
    )
    _percentiles(figures, "latency_ms", "latency_bounds_ms", "latency")
    facts = {
        "CPU time": f"{figures['cpu_ms']['p50']:.3f} ms a request (median)",
        "waiting": f"{figures['waiting_share']:.1%} of the time without a processor",
        "settled": "yes" if figures["is_settled"] else "NO: three windows within 5 % were not reached",
        "overhead": f"{figures['overhead_ns'] / 1e3:.1f} µs of each latency is the measurement's own",
    }
    if figures["utilization"] is not None:
        facts["utilization"] = f"{figures['utilization']:.0%}"
    if figures["is_saturated"]:
        facts["saturated"] = "YES: more arrives than is answered, so the queue grows until the end"
    if figures["energy_mj"] is not None:
        facts["energy"] = f"{figures['energy_mj']:.2f} mJ a request"
    console.print_facts(facts)


def _percentiles(figures: Mapping[str, Any], estimates: str, bounds: str, name: str) -> None:
    from edgesmith import console

    rows = []
    for percentile, bound in figures[bounds].items():
        value = figures[estimates][percentile] if estimates else bound["estimate"]
        said = f"needs {bound['num_required']:,} requests"
        if bound["upper"] is not None:
            said = f"{'—' if bound['lower'] is None else format(bound['lower'], '.3f')} to {bound['upper']:.3f}"
        rows.append((percentile, "—" if value is None else f"{value:.3f}", said))
    confidence = next(iter(figures[bounds].values()))["confidence"]
    console.print_table((name, "ms", f"bounds, {confidence:.0%} each"), rows)


def _start(figures: Mapping[str, Any]) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    console.print_facts(
        {
            "start": f"{figures['cold_start_ms']:.0f} ms to the first answer of a fresh process, files "
            + ("read from the disk" if figures["is_cache_cold"] else "in the page cache already"),
            "memory": f"{format_bytes(figures['peak_rss_bytes'])} at the peak",
        }
    )


def _limits(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    console.print_facts(
        {"limit": f"{figures['sentence']} ({figures['ideal_ms']:.3f} of {figures['measured_ms']:.3f} ms)"}
    )
    rows = [
        (one["operator"], f"{one['num_nodes']:,}", f"{one['ms']:.3f}", f"{one['share']:.0%}")
        for one in figures["operators"][:6]
    ]
    console.print_table(("operator", "nodes", "ms", "of the time"), rows)


def _throughput(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    bounds = figures["examples_per_second_bounds"]
    lower, upper = (f"{value:,.1f}" if value else "—" for value in (bounds["lower"], bounds["upper"]))
    console.print_facts(
        {
            "offline": f"{figures['rounds']} rounds of {figures['num_examples']:,} examples in batches of "
            f"{figures['batch_size']}, {figures['threads']} thread(s), {figures['engine']}",
            "throughput": f"{figures['examples_per_second']:,.1f} examples/s "
            f"({lower} to {upper}, {bounds['confidence']:.0%} each)",
            "CPU time": f"{figures['cpu_ms']:.3f} ms an example",
            "settled": "yes" if figures["is_settled"] else "NO: three windows within 5 % were not reached",
        }
    )


def _sweep(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    rows = [
        (
            f"{row['batch_size']}",
            "own" if row["length"] is None else f"{row['length']}",
            f"{row['cpu_ms']:.3f}",
            f"{row['wall_p50_ms']:.3f}",
            f"{row['examples_per_second']:,.1f}",
            "—" if row["share"] is None else f"{row['share']:.0%}",
            row["bound_by"] or "—",
        )
        for row in figures["rows"]
    ]
    head = ("batch", "tokens", "CPU ms an example", "ms a batch, p50", "examples/s", "of the limit", "bound by")
    console.print_table(head, rows)
    for text in figures["left_out"]:
        console.say(f"left out: {text}")


def _generation(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    console.say(f"generate: {figures['num_requests']:,} answers, {figures['inputs']}, {figures['engine']}")
    for kind, name in (("ttft", "time to first token"), ("tpot", "time per token"), ("itl", "between tokens")):
        _percentiles(figures, f"{kind}_ms", f"{kind}_bounds_ms", name)
    rate = figures["generated_tokens_per_second"]
    console.print_facts(
        {
            "prompt": f"{figures['prompt_tokens_per_second']:,.1f} tokens/s",
            "generation": "—" if rate is None else f"{rate:,.1f} tokens/s",
            "CPU time": f"{figures['cpu_ms_per_token']:.2f} ms a token",
        }
    )


def _generation_limits(figures: Mapping[str, Any]) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    console.print_facts(
        {
            "limit": figures["sentence"],
            "read a token": f"{format_bytes(round(figures['bytes_per_token']))} of weights, keys and values",
            "reading": figures["prompt_sentence"],
        }
    )


def _language(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    console.say(
        f"{figures['num_tokens']:,} tokens scored in {figures['num_windows']} windows of {figures['window_length']}, "
        f"{figures['engine']}" + (f", against {figures['reference_engine']}" if figures["reference_engine"] else "")
    )
    rows = [("perplexity", figures["perplexity"], "")]
    if "kld" in figures:
        rows += [
            ("perplexity of the reference", figures["reference_perplexity"], ""),
            ("perplexity ratio", figures["perplexity_ratio"], "×"),
            *((f"KLD {name}", value, "nats") for name, value in figures["kld"].items()),
            ("same top token", figures["same_top"], ""),
            ("Δp mean", figures["p_diff"]["mean"], ""),
            ("Δp RMS", figures["p_diff"]["rms"], ""),
        ]
    head = ("", "figure", "±", f"bounds, {figures['confidence']:.1%} each", "")
    console.print_table(head, [_estimated(name, value, unit) for name, value, unit in rows])


def _estimated(name: str, value: Any, unit: str) -> tuple[str, ...]:
    """A row of a figure with its token-wise error and its bounds, which take windows as independent."""
    if not isinstance(value, Mapping):
        return (name, f"{value:.5g}", "", "", unit)
    error, lower, upper = value["error"], value["lower"], value["upper"]
    bounds = "too few windows" if lower is None or upper is None else f"{lower:.5g} to {upper:.5g}"
    return (name, f"{value['value']:.5g}", "" if error is None else f"{error:.2g}", bounds, unit)


def _comparison(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    def ratio(name: str) -> str:
        value = figures[name]
        return f"{value['estimate']:.3f}× ({value['lower']:.3f} to {value['upper']:.3f})"

    console.print_facts(
        {
            "in turns": f"{figures['num_pairs']:,} pairs of {figures['turn_requests']} requests in "
            f"{figures['num_sessions']} session(s), {figures['inputs']}",
            "CPU time": f"{figures['artifact_cpu_ms']:.3f} ms, baseline {figures['baseline_cpu_ms']:.3f} ms a request",
            "faster": f"{ratio('cpu_speedup')} by CPU time, {ratio('wall_speedup')} by wall time",
            "noise": f"±{figures['noise']['cpu_percent']:.2f} % CPU time: the baseline against itself",
            "settled": "yes" if figures["is_settled"] else "NO: three windows within 5 % were not reached",
        }
    )


def _show_load(figures: Mapping[str, Any]) -> None:
    from edgesmith import console

    console.say(
        f"load: {figures['num_requests']:,} requests, {figures['rate']:.4g} a second asked for, "
        f"{figures['rate_sent']:.4g} sent, {figures['duration_s']:g} s, {figures['num_workers']} worker(s), "
        f"{figures['protocol']}, {figures['payload']}"
    )
    _percentiles(figures, "latency_ms", "latency_bounds_ms", "from intended start")
    streams = figures["streams"] or {}
    for key, name in (("ttft_ms", "time to first token"), ("itl_ms", "between tokens")):
        if key in streams:
            _percentiles({"bounds": streams[key]}, "", "bounds", name)
    lag = figures["lag_ms"]
    num_ok = figures["num_requests"] - figures["num_failed"]
    facts = {
        "answered": f"{num_ok:,} of {figures['num_requests']:,} requests, {figures['num_failed']:,} failed",
        "sending lag": f"p99 {lag['p99']:.3f} ms ({lag['allowed']:g} allowed)",
        "load generator": f"{figures['client_cpu_us']:.0f} µs CPU a request, {figures['num_connections']} connections",
    }
    facts |= {f"failed: {one['name']}": f"{one['count']:,}, such as {one['sample']}" for one in figures["failures"]}
    if figures["why_not_kept"]:
        facts["not as asked"] = figures["why_not_kept"]
    facts |= {f"note {number}": text for number, text in enumerate(figures["notes"], start=1)}
    console.print_facts(facts)


_SHOWN = {
    "latency": _latency,
    "start": _start,
    "limits": _limits,
    "throughput": _throughput,
    "sweep": _sweep,
    "generation": _generation,
    "generation_limits": _generation_limits,
    "language": _language,
    "comparison": _comparison,
}
