"""Starter recipes: what can be guessed from a checkpoint, said so, and the rest left to fill in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.artifact import open_artifact
from edgesmith.data import read_rows
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write
from edgesmith.tasks import TEXT_GENERATION, ImageClassification, guess_task
from edgesmith.tasks.folder import read_json_object

__all__ = ["write_starter"]

_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer")

_MAX_UP = 2
"""Folders to go up, from which on a path is written whole."""

_HEADER = """\
# {headline}
# Editors: `edgesmith schema > recipe.schema.json` gives completion and checks.
version: 1
name: {name}
task: {task}
model:
  base: {base}
{adapter}
data:
"""

_ROWS_TEMPLATE = """\
  eval: {data}   # held-out rows; accuracy is judged on all of them
{train}
  # unlabelled: more.jsonl   # further rows without labels, on which a student learns what its teacher says
  {calibration}
  # columns: {columns}   # where the file's columns have other names
{steps}
targets:
{targets}
gates:
  accuracy: {{max_drop: 0.01}}   # at most one point below the whole fp32 model, shown on the same rows
  size: {{min_reduction: {reduction}}}   # times smaller than the whole fp32 model
  speed: {{min_speedup: {speedup}}}    # times less CPU time a request than the whole fp32 model
"""

_ENCODER_STEPS = """\
  - trim-vocabulary    # keeps the tokens of data.train; text is read as before
  - prune: {{num_layers: {num_layers}, layers: uniform, keep: {{ffn: 0.5}}}}   # a third of the layers, half their width
  - distill: {distill}   # what is left learns from the whole model{labels}"""

_CNN_STEPS = """\
  - prune: {{importance: taylor, max_macs: 0.5, multiple_of: 16}}   # half of the work, in whole channels
  - distill: {{hard: 0.5, train: {{batch_size: 64, learning_rate: 0.001}}}}   # learns from the whole, and the labels"""

_LANGUAGE_TEMPLATE = """\
  eval: {data}   # held-out text; perplexity and divergence are judged on it
  calibration: {train_text}   # other text of the same kind: importance matrices are measured on it
  {train}
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

_LANGUAGE_STEPS = """\
  - trim-vocabulary   # keeps the tokens of data.train, and what other text is spelled with
  # - prune: {{num_layers: {num_layers}}}   # the layers that change the hidden states least go; needs distill, and a
  # - distill: {{}}   # looser perplexity gate: what is left learns from the whole model on data.train"""


def write_starter(
    checkpoint: Path, *, adapter: Path | None = None, data: Path | None = None, train: Path | None = None, out: Path
) -> tuple[list[str], Path]:
    """Write a recipe for a checkpoint.

    Args:
        checkpoint: Hugging Face folder, or an adapter's folder that names its base.
        adapter: PEFT adapter to merge first.
        data: Held-out rows.
        train: Rows (of a language model: text) to train on; with them the recipe makes a smaller model first.
        out: Recipe to write; must not be there.

    Returns:
        What was guessed and what is left to fill in, a sentence each; and the recipe's path.

    Raises:
        UsageError: the checkpoint is missing, or `out` is there already.
        UnsupportedError: no task fits the checkpoint.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already", mend="Choose another name with -o/--out, or move it away.")
    checkpoint, adapter, guesses = _find_base(checkpoint, adapter)
    if not (checkpoint / "config.json").is_file():
        raise UsageError(f"{checkpoint}: is no Hugging Face folder (it has no config.json)")
    open_artifact(checkpoint, kinds=("checkpoint",))
    config = read_json_object(checkpoint / "config.json")
    task = guess_task(config)
    guesses.append(f"task: {task}, from the architecture in {checkpoint / 'config.json'}")
    kind = _kind_of(task, config)
    guesses += _explain(kind, train)
    fields = _language_fields(data, train, out, guesses) if kind == "language" else _row_fields(kind, data, train, out)
    files = fields.pop("files").split()
    missing = [one for one in files if not (out.absolute().parent / one).exists()]
    if missing:
        guesses.append(f"missing: {' and '.join(missing)}; put your files there, or their names into {out.name}")
    template = _HEADER + (_LANGUAGE_TEMPLATE if kind == "language" else _ROWS_TEMPLATE)
    text = template.format(
        headline=f"Starter recipe for {checkpoint.name}; run it with: edgesmith run {out.name}",
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", checkpoint.absolute().name).strip("-.") or "model",
        task=task,
        base=_relative(checkpoint, out),
        adapter=f"  adapter: {_relative(adapter, out)}"
        if adapter
        else "  # adapter: path/to/lora   # with merge as the first of the steps",
        steps=_steps(kind, task, config, is_merged=adapter is not None, is_trained=train is not None),
        **fields,
    )
    atomic_write(out, text)
    return guesses, out


def _kind_of(task: str, config: Mapping[str, Any]) -> str:
    """Which template fits: `language`, `cnn`, `vision` (a transformer that sees) or `encoder` (of text)."""
    if task == TEXT_GENERATION:
        return "language"
    if task != ImageClassification.name:
        return "encoder"
    return "vision" if any("heads" in key for key in config) else "cnn"


def _find_base(checkpoint: Path, adapter: Path | None) -> tuple[Path, Path | None, list[str]]:
    """The base, and its adapter where the folder that was given is one; what was guessed."""
    if adapter is not None or not (checkpoint / "adapter_config.json").is_file():
        return checkpoint, adapter, []
    named = read_json_object(checkpoint / "adapter_config.json").get("base_model_name_or_path")
    if named and (checkpoint / named).is_dir():
        named = os.path.normpath(checkpoint / named)
    if not named or not Path(named).is_dir():
        raise UsageError(
            f"{checkpoint}: is an adapter, and its base {named!r} is no folder here",
            mend="Name the base: edgesmith init BASE --adapter ADAPTER.",
        )
    return Path(named), checkpoint, [f"base: {named}, as the adapter says"]


def _explain(kind: str, train: Path | None) -> list[str]:
    """What the recipe does, and why."""
    if kind == "language":
        format_guess = "format: gguf with Q4_K_M and an importance matrix, which is measured on data.calibration"
    elif kind == "cnn":
        format_guess = "format: onnx, with static INT8 where there are rows to calibrate on (--train)"
    else:
        format_guess = "format: onnx with dynamic INT8, which needs no calibration"
    if train is None:
        return [format_guess, "steps: none that train; with rows to train on (--train) the model becomes much smaller"]
    made = {
        "encoder": "its vocabulary is trimmed, a third of its layers and half of their width stay, and it is distilled",
        "vision": "a third of its layers and half of their width stay, and it is distilled",
        "cnn": "half of its multiply-accumulates go, in whole channels, and it is distilled",
        "language": "its vocabulary is trimmed to the text",
    }
    return [format_guess, f"steps: {made[kind]}"]


def _steps(kind: str, task: str, config: Mapping[str, Any], *, is_merged: bool, is_trained: bool) -> str:
    """The recipe's steps; those that need rows to train on are only shown where there are none."""
    num_layers = next((config[key] for key in _LAYER_COUNTS if isinstance(config.get(key), int)), 6)
    share = 4 if kind == "language" else 3
    kept = max(1, num_layers - num_layers // share if kind == "language" else num_layers // share)
    templates = {"cnn": _CNN_STEPS, "language": _LANGUAGE_STEPS, "vision": _ENCODER_STEPS.partition("\n")[2]}
    lines = templates.get(kind, _ENCODER_STEPS).format(
        num_layers=kept,
        distill="{hard: 0.5}" if task.endswith("classification") else "{}",
        labels=", and from the labels" if task.endswith("classification") else "",
    )
    if not is_trained:
        lines = "\n".join(
            "  #" + line[1:] if not line.lstrip().startswith("#") else line for line in lines.splitlines()
        )
    head = "steps:" if is_merged or is_trained else "# steps:"
    return "\n".join([head, *(["  - merge"] if is_merged else []), lines])


def _row_fields(kind: str, data: Path | None, train: Path | None, out: Path) -> dict[str, str]:
    """What the template of models that answer rows needs."""
    is_cnn, sees = kind == "cnn", kind in ("cnn", "vision")
    calibrated = "  server: {format: onnx, quantize: {method: static-int8}}"
    plain = "  server: {format: onnx}   # INT8 of convolutions: quantize: {method: static-int8}, with data.calibration"
    int8 = "  server: {format: onnx, quantize: {method: dynamic-int8}}\n"
    int8 += "  # static: {format: onnx, quantize: {method: static-int8}}   # needs data.calibration"
    reduction, speedup = ("5", "2.0") if is_cnn else ("8", "4.0")
    if train is None:
        reduction, speedup = ("1.0", "1.0") if is_cnn else ("3.5", "1.5")
    path = _relative(train, out) if train else "train.jsonl"
    calibration = f"calibration: {{path: {path}, num_samples: 128}}"
    is_calibrated = is_cnn and train is not None
    return {
        "data": _relative(data, out) if data else "test.jsonl",
        "train": f"  train: {_relative(train, out)}" if train else "  # train: train.jsonl   # for the steps below",
        "calibration": f"{calibration}   # activations' ranges are measured on it"
        if is_calibrated
        else f"# {calibration}   # for static-int8 and smoothing; not rows of data.eval",
        "columns": "{image: file, label: topic}" if sees else "{text: body, label: topic}",
        "targets": (calibrated if is_calibrated else plain) if is_cnn else int8,
        "reduction": reduction,
        "speedup": speedup,
        "files": "" if data else "test.jsonl",
    }


def _language_fields(data: Path | None, train: Path | None, out: Path, guesses: list[str]) -> dict[str, str]:
    """What the template of language models needs."""
    asks = data is not None and _has_prompts(data)
    if asks:
        guesses.append(f"data.prompts: {data}, whose rows have a prompt; data.eval is a text of its own")
    held_out = None if asks else data
    train_text = _relative(train, out) if train else "train.txt"
    return {
        "data": _relative(held_out, out) if held_out else "held_out.txt",
        "train_text": train_text,
        "train": f"train: {train_text}" if train else f"# train: {train_text}   # for the steps below",
        "prompts": f"prompts: {_relative(data, out)}" if asks and data else "# prompts: prompts.jsonl",
        "files": " ".join(["" if held_out else "held_out.txt", "" if train else train_text]),
    }


def _has_prompts(data: Path) -> bool:
    """Whether the rows of a file ask something, to judge from the first one."""
    return "prompt" in next(iter(read_rows(data))).values


def _relative(path: Path, recipe: Path) -> str:
    """Write a path as seen from the recipe's folder, or whole where that is far away; quoted where YAML needs it."""
    text = os.path.relpath(path.absolute(), recipe.absolute().parent)  # links stay
    if Path(text).parts.count("..") > _MAX_UP:
        text = os.path.normpath(path.absolute())
    return text if re.fullmatch(r"[A-Za-z0-9_./-]+", text) else json.dumps(text)
