"""Measure what the README claims, on this machine, and print it as a table in Markdown.

`run` is `edgesmith run` with the demo's recipe. Everything is made and timed anew, in a store of its own
below `out/bench`. Run it on a machine that does nothing else: `make bench`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import finetune
import prepare

ROOT = prepare.HERE.parents[1]
OUT = Path("out/bench")
RECIPE = "examples/news/recipe.yaml"
EDGESMITH = str(Path(sys.executable).with_name("edgesmith"))
QUANTIZE = "targets.server.quantize"
VARIANTS = {
    "dynamic-int8 (the recipe)": (),
    "dynamic-int8, smoothed": (f"{QUANTIZE}.smoothing=true",),
    "static-int8": (f"{QUANTIZE}.method=static-int8",),
}
EXIT_JUDGED = (0, 1, 3)  # PASS, FAIL, INCONCLUSIVE: all are figures to show

# A decoder of SmolLM2-135M's shape and storage with random weights: memory does not depend on their values.
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def run_json(command: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Run one command that prints a JSON object; return it and the wall time in seconds."""
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode not in EXIT_JUDGED:
        raise SystemExit(done.returncode)
    content: dict[str, Any] = json.loads(done.stdout)
    return content, seconds


def run_recipe(variant: str) -> tuple[dict[str, Any], float]:
    """Run the demo's recipe in one variant."""
    out = folder_of(variant)
    command = [EDGESMITH, "run", RECIPE, "--out", str(out), "--store", str(OUT / "store"), "--json"]
    return run_json([*command, *(part for one in VARIANTS[variant] for part in ("--set", one))])


def folder_of(variant: str) -> Path:
    """Where a variant's release is written."""
    return OUT / re.sub(r"[^a-z0-9]+", "-", variant).strip("-")


def time_help() -> float:
    """Return the best wall time of five `edgesmith --help`, in seconds."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([EDGESMITH, "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - start)
    return min(times)


def write_smollm2(base: Path, adapter: Path) -> None:
    """Write a seeded decoder in bfloat16 and a LoRA of rank 8 for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M)).to(torch.bfloat16)
    model.save_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(adapter)


def merge_peak(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Merge in a fresh process and return what it reports, memory in bytes."""
    code = (
        "import json, sys; from pathlib import Path; from compress.merge import AdapterSpec, merge_adapter;"
        "base, adapter, out = map(Path, sys.argv[1:]);"
        "r = merge_adapter(base, [AdapterSpec(path=adapter)], out);"
        "print(json.dumps({'weights': r.weights_bytes, 'peak': r.peak_memory_bytes,"
        " 'added': r.peak_memory_added_bytes}))"
    )
    return run_json([sys.executable, "-c", code, str(base), str(adapter), str(out)])[0]


def release_column(variant: str, release: dict[str, Any], seconds: float) -> dict[str, str]:
    """Give the figures of a variant's one target, with the bounds that its gates were judged on."""
    [target] = release["targets"]
    gates = {one["gate"]: one for one in target["gates"]}
    weights = (finetune.WORK / "base" / "model.safetensors").stat().st_size
    proof = json.loads((folder_of(variant) / "evidence" / "server" / "verify" / "verification.json").read_bytes())
    figures = proof["metrics"]
    accuracy, speed = gates["accuracy"], gates["speed"]
    return {
        "verdict": release["verdict"],
        "model file": f"{target['model_bytes'] / 1e6:.2f} MB",
        f"smaller than the checkpoint's weights ({weights / 1e6:.2f} MB)": f"{weights / target['model_bytes']:.2f}×",
        f"accuracy on {accuracy['num_samples']:,} held-out texts": f"{100 * target['metrics']['accuracy']:.2f} %",
        "loss against fp32, at most (95 %)": f"{100 * accuracy['bound']:.2f} points",
        "less CPU time than fp32, 1×128 tokens, one thread": (
            f"{speed['estimate']:.2f}× (at least {speed['bound']:.2f})"
        ),
        "divergence from torch, mean": f"{figures['kl_mean']:.1e} nats",
        "relative error of the logits": f"{figures['relative_error']:.3f}",
        "`run`, nothing cached but what variants share": f"{seconds:.0f} s",
    }


def machine_line() -> str:
    """Name the machine and the libraries that matter."""
    from importlib.metadata import version

    from bench.machine.machine import describe_machine

    names = ("torch", "transformers", "onnxruntime")
    return f"{describe_machine().summary}; " + ", ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    """Prepare, fine-tune where needed, measure, print."""
    os.chdir(ROOT)
    prepare.main()
    finetune.main()
    shutil.rmtree(OUT, ignore_errors=True)
    columns = {}
    for variant in VARIANTS:
        release, seconds = run_recipe(variant)
        columns[variant] = release_column(variant, release, seconds)
    again = run_recipe(next(iter(VARIANTS)))[1]
    write_smollm2(OUT / "smollm2", OUT / "smollm2-lora")
    rows = [
        ("`edgesmith run`, everything cached", f"{again:.1f} s"),
        ("`edgesmith --help`", f"{time_help():.2f} s"),
    ]
    for name, base, adapter in (
        ("MiniLM, fp32", finetune.WORK / "base", finetune.WORK / "adapter"),
        ("SmolLM2-135M's shape, bf16", OUT / "smollm2", OUT / "smollm2-lora"),
    ):
        peak = merge_peak(base, adapter, OUT / "merged")
        most, added, weights = (f"{peak[key] / 1e6:,.0f} MB" for key in ("peak", "added", "weights"))
        rows.append((f"merge of {name} ({weights})", f"peak memory {most}, {added} of it above the libraries"))
        shutil.rmtree(OUT / "merged")
    print(f"\nOn {machine_line()}:\n")
    print(f"| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")
    print("\n| | |\n| --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
