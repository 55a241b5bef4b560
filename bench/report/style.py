"""Colours and layout of the page. Every colour is readable by people who see colours differently, on both grounds."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DARK", "LIGHT", "STYLE"]

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "card": "#f4f6f9",
    "ink": "#17202b",
    "soft": "#4f5d6c",
    "rule": "#d6dde5",
    "pass": "#0f6b3a",
    "pass-tint": "#d8efe1",
    "fail": "#b3202c",
    "fail-tint": "#f8dcdc",
    "open": "#855200",
    "open-tint": "#f9ebcf",
    "a": "#0a5fb4",
    "b": "#a84b00",
    "k0": "#0a5fb4",
    "k1": "#00775f",
    "k2": "#a84b00",
    "k3": "#7a4fb5",
    "k4": "#3d8bd0",
    "k5": "#b03a7c",
    "k6": "#68717d",
    "k7": "#7d6b00",
    "heat": "10 95 180",
    "onbar": "#ffffff",
    "shade": "rgb(20 40 60 / .22)",
}
DARK: Mapping[str, str] = {
    "paper": "#0f151c",
    "card": "#18212b",
    "ink": "#e8eef4",
    "soft": "#a5b4c3",
    "rule": "#313e4c",
    "pass": "#56c98a",
    "pass-tint": "#163a2a",
    "fail": "#ff8a80",
    "fail-tint": "#4a2024",
    "open": "#e5b04f",
    "open-tint": "#43341a",
    "a": "#68b1ff",
    "b": "#f2a65a",
    "k0": "#68b1ff",
    "k1": "#4fc9ad",
    "k2": "#f2a65a",
    "k3": "#bd9df2",
    "k4": "#a9d3ff",
    "k5": "#f08fc0",
    "k6": "#a3afbc",
    "k7": "#d2c25a",
    "heat": "104 177 255",
    "onbar": "#0f151c",
    "shade": "rgb(190 215 240 / .25)",
}


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


_HEAT = "\n".join(f".h{level} {{ background: rgb(var(--heat) / {level * 0.05:.2f}); }}" for level in range(1, 10))
_KINDS = " ".join(f"svg .k{number} {{ fill: var(--k{number}); }}" for number in range(8))
_LINES = " ".join(f"svg .series.k{number} {{ fill: none; stroke: var(--k{number}); }}" for number in range(8))

_LAYOUT = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 80rem; padding: 1.25rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { margin-bottom: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.8rem 0 .8rem; padding-top: .9rem; border-top: 2px solid var(--rule);
  overflow-wrap: anywhere; display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; }
h3 { font-size: 1.06rem; margin: 2.2rem 0 .5rem; overflow-wrap: anywhere; }
h3 .pill { margin-left: .6rem; }
p, li { color: var(--soft); margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; font-size: .93rem; }
ul { padding-left: 1.2rem; margin: .3rem 0; }
a { color: var(--a); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .9rem 0 0; font-size: .93rem; }
nav a { padding: .25rem 0; }
.banner { display: flex; gap: .9rem; align-items: center; padding: .9rem 1.1rem; border-radius: .7rem;
  background: var(--card); border: 1px solid var(--rule); }
.banner.PASS { background: var(--pass-tint); border-color: var(--pass); }
.banner.FAIL { background: var(--fail-tint); border-color: var(--fail); }
.banner.INCONCLUSIVE { background: var(--open-tint); border-color: var(--open); }
.banner .mark { font-size: 2.1rem; line-height: 1; font-weight: 700; }
.banner strong { display: block; font-size: 1.3rem; line-height: 1.3; }
.banner div > span { display: block; font-size: .95rem; }
.banner.PASS strong, .banner.PASS .mark { color: var(--pass); }
.banner.FAIL strong, .banner.FAIL .mark { color: var(--fail); }
.banner.INCONCLUSIVE strong, .banner.INCONCLUSIVE .mark { color: var(--open); }
.obstacles { list-style: none; padding: 0; margin: .5rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; }
.obstacles li { color: var(--ink); margin: 0; }
.pill { display: inline-block; white-space: nowrap; font-size: .8rem; line-height: 1.5; font-weight: 700;
  border-radius: 1rem; padding: .05rem .65rem; border: 1px solid; }
.pill.PASS { color: var(--pass); background: var(--pass-tint); }
.pill.FAIL { color: var(--fail); background: var(--fail-tint); }
.pill.INCONCLUSIVE { color: var(--open); background: var(--open-tint); }
.warning { color: var(--open); border-left: .25rem solid var(--open); padding-left: .7rem; }
.gates { margin: .4rem 0 1rem; }
.gate { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 25rem); gap: .2rem 1.5rem; align-items: center;
  padding: .8rem 0; border-top: 1px solid var(--rule); break-inside: avoid; }
.gate:first-child { border-top: 0; }
.gate .name { font-weight: 650; margin-right: .6rem; overflow-wrap: anywhere; }
.gate p { margin: .35rem 0 0; }
.beside { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem 1.5rem; margin: .8rem 0;
}
.beside.three { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; }
.cell { min-width: 0; } .cell .wide { margin: 0; }
@media (max-width: 66rem) { .beside.three { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
figure { margin: 0; padding: .7rem .8rem .8rem; background: var(--card); border-radius: .7rem; break-inside: avoid;
  min-width: 0; }
figcaption { color: var(--soft); font-size: .86rem; line-height: 1.4; margin: 0 0 .5rem; min-height: 1.4em; }
.wide { overflow-x: auto; margin: .7rem 0; max-width: 100%; background:
  linear-gradient(to right, var(--paper) 1.2rem, transparent 3rem) local 0 0 / 100% 100% no-repeat,
  linear-gradient(to left, var(--paper) 1.2rem, transparent 3rem) local 0 0 / 100% 100% no-repeat,
  linear-gradient(to right, var(--shade), transparent 1rem) 0 0 / 100% 100% no-repeat,
  linear-gradient(to left, var(--shade), transparent 1rem) 0 0 / 100% 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; line-height: 1.4; }
.caption { font-size: .86rem; margin: .7rem 0 0; } .caption + .wide, .cell .caption + .wide { margin-top: .2rem; }
.cell .caption { margin-top: 0; }
details { margin: .7rem 0; } .cell details { margin: 0; }
summary { cursor: pointer; color: var(--a); font-size: .93rem; padding: .3rem 0; }
th, td { text-align: right; padding: .38rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { padding-left: .2rem; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; text-wrap: balance; }
.text { text-align: left; }
td small { display: block; max-width: 9.8rem; margin-left: auto; color: var(--soft);
  font-size: .76rem; line-height: 1.35; white-space: normal; text-wrap: balance; }
td.text { white-space: normal; min-width: 6rem; max-width: 24rem; overflow-wrap: break-word; }
td.bar { background: linear-gradient(rgb(var(--heat) / .22), rgb(var(--heat) / .22)) no-repeat left / var(--w) 100%; }
.mono, code { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { margin: .6rem 0; padding: .7rem .9rem; background: var(--card); border-radius: .5rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tree { list-style: none; margin: .5rem 0; padding: 0; }
.tree ul { list-style: none; margin: 0; padding: 0 0 0 1.1rem; border-left: 2px solid var(--rule); }
.tree li { max-width: none; margin: 0; padding: .3rem 0 .3rem .2rem; color: var(--soft); }
.tree b { color: var(--ink); }
svg { display: block; width: 100%; max-width: 35rem; height: auto; margin: 0 auto; overflow: visible;
  font-variant-numeric: tabular-nums; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  fill: var(--soft);  paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.gate svg text { stroke: var(--paper); }
svg .title { font-size: 11.5px; }
svg .strong { font-weight: 650; }
svg text.ink { fill: var(--ink); }
svg text.onbar { fill: var(--onbar); stroke: none; font-weight: 650; }
svg text.a { fill: var(--a); } svg text.b { fill: var(--b); } svg text.FAIL { fill: var(--fail); }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .limit { stroke: var(--fail); stroke-width: 1.8; stroke-dasharray: 5 3; }
svg .limit.faint { stroke-width: 1; stroke-dasharray: 2 4; }
svg .limit-end { fill: none; stroke: var(--fail); stroke-width: 1.8; }
svg .series { fill: none; stroke-width: 2.2; stroke-linejoin: round; } svg .series.thin { stroke-width: 1.3; }
svg .series.a, svg .whisker.a { stroke: var(--a); } svg .series.b, svg .whisker.b { stroke: var(--b); }
svg .series.b { stroke-dasharray: 7 3; }
svg .whisker { stroke-width: 2.4; stroke-linecap: round; }
svg .band { stroke: none; fill-opacity: .18; } svg .band.a { fill: var(--a); } svg .band.b { fill: var(--b); }
svg .dot.a { fill: var(--a); } svg .dot.b { fill: var(--b); } svg .dot.faint { fill-opacity: .5; }
svg .dot { stroke: var(--card); stroke-width: .8; }
svg .dot.PASS { fill: var(--pass); } svg .dot.FAIL { fill: var(--fail); } svg .dot.INCONCLUSIVE { fill: var(--open); }
svg .ring { fill: var(--card); stroke-width: 2; } svg .ring.b { stroke: var(--b); }
svg .ring.a { fill: none; stroke: var(--a); } svg .kept { stroke-dasharray: 2 4; }
svg .blob { fill-opacity: .22; stroke-width: 1.5; } svg .blob.a { fill: var(--a); stroke: var(--a); }
svg .blob.b { fill: var(--b); stroke: var(--b); stroke-dasharray: 4 3; }
svg .leader { stroke-width: 1; } svg .leader.a { stroke: var(--a); } svg .leader.b { stroke: var(--b); }
svg .span { stroke: var(--ink); stroke-width: 2.4; }
svg .zone-pass { fill: var(--pass-tint); } svg .zone-fail { fill: var(--fail-tint); }
svg .sent { fill: var(--k6); } svg .failed { fill: var(--fail); }
footer { margin-top: 3rem; font-size: .85rem; color: var(--soft); }
@media screen and (max-width: 66rem) {
  .stacked { overflow: visible; background: none; }
  .stacked table, .stacked tr { display: block; }
  .stacked tbody { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .8rem; }
  .stacked thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stacked tr { padding: .5rem .8rem; background: var(--card); border-radius: .7rem; }
  .stacked td { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; padding: .3rem 0;
    max-width: none; white-space: normal; text-align: right; }
  .stacked td.text[data-name] { display: block; text-align: left; }
  .stacked td.text[data-name]::before { content: none; }
  .stacked td:last-child { border-bottom: 0; }
  .stacked td:first-child { font-weight: 650; font-size: .95rem; padding: .1rem 0 .3rem; text-align: left; }
  .stacked td[data-name]::before { content: attr(data-name); color: var(--soft); text-align: left; }
  .stacked td small { max-width: 13rem; }
}
@media (max-width: 46rem) {
  .gate, .beside, .beside.three { grid-template-columns: minmax(0, 1fr); }
  figure { padding: .6rem .4rem; }
  h1 { font-size: 1.35rem; }
  .banner { padding: .8rem; gap: .7rem; }
}
"""
_PRINT = """
@media print { :root { %s }
  body { max-width: none; padding: 0; font-size: 10.5pt; } nav { display: none; }
  .wide { overflow: visible; } table { font-size: 8pt; } th, td { white-space: normal; padding: .2rem .35rem; }
  h2, h3 { break-after: avoid; } tr, figure, .gate { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    f"{_LAYOUT}{_HEAT}\n{_KINDS}\n{_LINES}\n{_PRINT % _variables(LIGHT)}"
)
