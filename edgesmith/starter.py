"""Starter recipes: what can be guessed from a checkpoint, said so, and the rest left to fill in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from edgesmith.artifact import open_artifact
from edgesmith.data import read_rows
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write
from edgesmith.tasks import TEXT_GENERATION, guess_task
from edgesmith.tasks.folder import read_json_object

__all__ = ["write_starter"]

_MAX_UP = 2
"""Folders to go up, from which on a path is written whole."""

_TEMPLATE = """\
# {headline}
# Editors: `edgesmith schema > recipe.schema.json` gives completion and checks.
version: 1
name: {name}
task: {task}
model:
  base: {base}
{adapter}
data:
  eval: {data}   # held-out rows; accuracy is judged on all of them
  # calibration: {{path: train.jsonl, num_samples: 128}}   # for static-int8 and smoothing; not rows of the file above
  # columns: {{text: body, label: topic}}   # where the file's columns have other names
{steps}
targets:
  server: {{format: onnx, quantize: {{method: dynamic-int8}}}}
  # static: {{format: onnx, quantize: {{method: static-int8}}}}   # needs data.calibration
gates:
  accuracy: {{max_drop: 0.01}}   # at most one point below the fp32 model, shown on the same rows
  size: {{min_reduction: 3.5}}   # times smaller than the fp32 model
  speed: {{min_speedup: 1.5}}    # times less CPU time a request than the fp32 model
"""

_LANGUAGE_TEMPLATE = """\
# {headline}
# Editors: `edgesmith schema > recipe.schema.json` gives completion and checks.
version: 1
name: {name}
task: {task}
model:
  base: {base}
{adapter}
data:
  eval: {data}   # held-out text; perplexity and divergence are judged on it
  calibration: train.txt   # other text of the same kind: importance matrices are measured on it
  {prompts}   # rows with prompt and reference: the artifact's answers are compared
{steps}
targets:
  phone: {{format: gguf, quantize: {{type: Q4_K_M}}}}
  # small: {{format: gguf, quantize: {{max_mb: 80}}}}   # each tensor's type chosen by its measured damage
  # box: {{format: genai, quantize: {{method: int4}}}}   # the same model for onnxruntime-genai
measure: {{threads: 2}}
gates:
  perplexity: {{max_ratio: 1.03}}     # times the checkpoint's on the same text
  divergence: {{max_mean_kld: 0.05}}  # of the next token's probabilities from the checkpoint's, in nats
  size: {{min_reduction: 3.0}}        # times smaller than the checkpoint
"""


def write_starter(
    checkpoint: Path, *, adapter: Path | None = None, data: Path | None = None, out: Path
) -> tuple[list[str], Path]:
    """Write a recipe for a checkpoint.

    Args:
        checkpoint: Hugging Face folder, or an adapter's folder that names its base.
        adapter: PEFT adapter to merge first.
        data: Held-out rows.
        out: Recipe to write; must not be there.

    Returns:
        What was guessed and what is left to fill in, a sentence each; and the recipe's path.

    Raises:
        UsageError: the checkpoint is missing, or `out` is there already.
        UnsupportedError: no task fits the checkpoint.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already", mend="Choose another name with -o/--out, or move it away.")
    guesses = []
    if adapter is None and (checkpoint / "adapter_config.json").is_file():
        adapter, named = checkpoint, read_json_object(checkpoint / "adapter_config.json").get("base_model_name_or_path")
        if named and (adapter / named).is_dir():
            named = os.path.normpath(adapter / named)
        if not named or not Path(named).is_dir():
            raise UsageError(
                f"{checkpoint}: is an adapter, and its base {named!r} is no folder here",
                mend="Name the base: edgesmith init BASE --adapter ADAPTER.",
            )
        checkpoint = Path(named)
        guesses.append(f"base: {checkpoint}, as the adapter says")
    if not (checkpoint / "config.json").is_file():
        raise UsageError(f"{checkpoint}: is no Hugging Face folder (it has no config.json)")
    open_artifact(checkpoint, kinds=("checkpoint",))
    task = guess_task(read_json_object(checkpoint / "config.json"))
    guesses.append(f"task: {task}, from the architecture in {checkpoint / 'config.json'}")
    generates = task == TEXT_GENERATION
    if generates:
        guesses.append("format: gguf with Q4_K_M and an importance matrix, which is measured on data.calibration")
    else:
        guesses.append("format: onnx with dynamic INT8, which needs no calibration")
    asks = generates and data is not None and _has_prompts(data)
    if asks:
        guesses.append(f"data.prompts: {data}, whose rows have a prompt; data.eval is a text of its own")
    held_out = data if not asks else None
    named = [] if held_out else ["held_out.txt" if generates else "test.jsonl"]
    named += ["train.txt"] if generates else []
    missing = [one for one in named if not (out.absolute().parent / one).exists()]
    if missing:
        guesses.append(f"missing: {' and '.join(missing)}; put your files there, or their names into {out.name}")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", checkpoint.absolute().name).strip("-.") or "model"
    text = (_LANGUAGE_TEMPLATE if generates else _TEMPLATE).format(
        headline=f"Starter recipe for {checkpoint.name}; run it with: edgesmith run {out.name}",
        name=name,
        task=task,
        base=_relative(checkpoint, out),
        adapter=f"  adapter: {_relative(adapter, out)}"
        if adapter
        else "  # adapter: path/to/lora   # with steps: [merge]",
        data=_relative(held_out, out) if held_out else named[0],
        prompts=f"prompts: {_relative(data, out)}" if asks and data else "# prompts: prompts.jsonl",
        steps="steps: [merge]" if adapter else "# steps: [merge]",
    )
    atomic_write(out, text)
    return guesses, out


def _has_prompts(data: Path) -> bool:
    """Whether the rows of a file ask something, to judge from the first one."""
    return "prompt" in next(iter(read_rows(data))).values


def _relative(path: Path, recipe: Path) -> str:
    """Write a path as seen from the recipe's folder, or whole where that is far away; quoted where YAML needs it."""
    text = os.path.relpath(path.absolute(), recipe.absolute().parent)  # links stay
    if Path(text).parts.count("..") > _MAX_UP:
        text = os.path.normpath(path.absolute())
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) else json.dumps(text)
