"""Recipes: what to make, from what, and what it must hold, as strict YAML.

Unknown keys, duplicate keys and wrong types are errors that name the line and the nearest key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edgesmith.errors import RecipeError
from edgesmith.files import storage_errors
from edgesmith.gates import Gates

__all__ = [
    "AdapterRef",
    "CalibrationRef",
    "DataRefs",
    "Measure",
    "MergeOptions",
    "ModelRef",
    "OptimizeFor",
    "QuantizeMethod",
    "QuantizeOptions",
    "Recipe",
    "Scenario",
    "Target",
    "load_recipe",
    "recipe_error",
]


QuantizeMethod = Literal["dynamic-int8", "static-int8"]
OptimizeFor = Literal["onnxruntime-cpu", "portable"]
Scenario = Literal["single", "server", "offline"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _one_or_more(value: Any) -> Any:
    """`adapter: a` and `adapter: [a, {path: b, weight: 0.5}]` mean lists of references."""
    return [value] if isinstance(value, str | dict) else value


def _expand_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class AdapterRef(_Strict):
    """An adapter and how much of it goes into the merge."""

    path: str
    """Folder with adapter_config.json and adapter_model.safetensors."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """The adapter's change of each weight is multiplied by this before it is added."""


Adapters = Annotated[tuple[Annotated[AdapterRef, BeforeValidator(_expand_path)], ...], BeforeValidator(_one_or_more)]


class ModelRef(_Strict):
    """The checkpoint to start from."""

    base: str
    """A Hugging Face folder with safetensors weights, or a hub id such as `org/name`."""
    revision: str | None = None
    """Commit or tag of a hub id; without one the newest is taken, and tomorrow's may be another."""
    adapter: Adapters = ()
    """One PEFT adapter folder, or a list of them with weights."""


class CalibrationRef(_Strict):
    """Rows that activation ranges are taken from."""

    path: str
    """JSONL, CSV or TSV file."""
    num_samples: Annotated[int, Field(ge=1)] = 128
    """How many rows are drawn from it, by a fixed seed."""


class DataRefs(_Strict):
    """Files of real rows, relative to the recipe."""

    eval: str
    """Held-out rows: accuracy is measured on all of them, parity and latency on some."""
    calibration: Annotated[CalibrationRef | None, BeforeValidator(_expand_path)] = None
    """Rows for calibration; needed by static quantization."""
    columns: dict[str, str] = {}
    """The task's column name → the file's, where they differ (`{text: body, label: topic}`)."""


class MergeOptions(_Strict):
    """How adapters are merged."""

    dequantize: bool = False
    """Allow a 4- or 8-bit base: it is turned back into floats first, at a loss that training already had."""


class MergeStep(_Strict):
    """Fold the adapters into the base."""

    merge: MergeOptions = MergeOptions()


class QuantizeOptions(_Strict):
    """How a graph's weights and activations become 8-bit integers."""

    method: QuantizeMethod
    """`dynamic-int8` takes activation ranges from each input, `static-int8` from calibration rows."""
    smoothing: bool | None = None
    """Scale down the few activation channels that are many times larger than the rest: several times nearer to fp32
    for some speed. Needs data.calibration. Left out, static-int8 does it and dynamic-int8 does not."""
    reduce_range: bool = False
    """7-bit weights: needed to be right on x86 processors without VNNI, at some loss elsewhere."""
    exclude: tuple[str, ...] = ()
    """Shell patterns of node and weight names that stay in float."""

    @property
    def is_smoothed(self) -> bool:
        """Whether activation channels are scaled first."""
        return self.method == "static-int8" if self.smoothing is None else self.smoothing

    @property
    def needs_calibration(self) -> bool:
        """Whether real rows are needed."""
        return self.method == "static-int8" or self.is_smoothed


class Target(_Strict):
    """One artifact to make."""

    format: Literal["onnx"]
    """What runs it."""
    quantize: QuantizeOptions | None = None
    """Leave out for fp32."""
    optimize_for: OptimizeFor = "onnxruntime-cpu"
    """`portable` uses only standard ONNX operators, for other runtimes than ONNX Runtime."""
    opset: Annotated[int | None, Field(ge=18, le=23)] = None
    """ONNX opset; chosen by `optimize_for` when left out."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Longest input in tokens; longer ones are cut. The model's own limit when left out."""


class Measure(_Strict):
    """How speed is measured."""

    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of the engine; one thread is what an edge box or a busy server gives a request."""
    length: Annotated[int | None, Field(ge=2)] = None
    """Tokens of every timed request, made of real text; each row's own length when left out."""
    seconds: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """How long each scenario, and the comparison with the baseline, is timed. Left out, long enough for the usual
    verdicts: 15 to 30 s, and as many requests as the gates' percentiles need."""
    scenarios: tuple[Scenario, ...] = ("single",)
    """How requests come: `single`, one after the other; `server`, at random times whether or not the last one is
    answered; `offline`, all at once, answered in batches. What a gate needs is measured in any case, and `single`
    always."""
    rate: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """Requests that arrive in a second in scenario `server`; half of what the artifact can answer when left out."""


def _name(value: str) -> str:
    if not value or not all(char.isalnum() or char in "-_." for char in value) or value.startswith("."):
        raise ValueError(f"{value!r} names a folder: use letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_name)]


def _expand_step(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class Recipe(_Strict):
    """One command's work: checkpoint → artifacts → measurements → verdicts."""

    version: Literal[1]
    """Of this format."""
    name: Name
    """Names the output folder."""
    task: Literal["text-classification", "feature-extraction"]
    """What the model does: decides model class, pre-processing and metrics."""
    model: ModelRef
    data: DataRefs
    steps: tuple[Annotated[MergeStep, BeforeValidator(_expand_step)], ...] = ()
    """What is done to the checkpoint before it is exported, in order."""
    targets: Annotated[dict[Name, Target], Field(min_length=1)]
    """Name → artifact to make. All of them are made from the same checkpoint."""
    baseline: str = "fp32"
    """What gates compare with: `fp32` is the unquantized export of the same checkpoint; else an artifact's folder."""
    gates: Gates = Gates()
    """What every target must hold."""
    measure: Measure = Measure()
    seed: int = 0
    """Of every random choice."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        merges = sum(isinstance(step, MergeStep) for step in self.steps)
        if merges > 1:
            raise ValueError("steps: merge stands there twice; list all adapters under model.adapter")
        if self.model.adapter and not merges:
            raise ValueError("model.adapter is set but steps has no merge: add `steps: [merge]`")
        if merges and not self.model.adapter:
            raise ValueError("steps has merge but there is no model.adapter")
        for name, target in self.targets.items():
            if target.quantize and target.quantize.needs_calibration and not self.data.calibration:
                what = "smoothing" if target.quantize.method == "dynamic-int8" else "static-int8"
                raise ValueError(f"targets.{name}: {what} needs data.calibration, a file of real rows")
        return self


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        settings: `a.b=c` strings that replace single values, `c` in YAML.

    Returns:
        The recipe. Its paths are as written, relative to the recipe's folder.

    Raises:
        RecipeError: the file is missing or not YAML, or breaks the schema; every fault is named, with its line.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe", mend="Write a starter recipe with `edgesmith init CHECKPOINT`.")
    with storage_errors(path):
        text = path.read_bytes()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict) or root is None:
        raise RecipeError(f"{path}: must be a mapping with the keys version, name, task, model, data, targets")
    _refuse_duplicates(root, path)
    for setting in settings:
        _apply(content, setting)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise recipe_error(error, root, path) from error


def recipe_error(error: ValidationError, root: yaml.Node, path: Path, prefix: tuple[str, ...] = ()) -> RecipeError:
    """Name every fault with its line and the nearest key.

    Args:
        error: Of a recipe, or of a part of one.
        root: The YAML that was read.
        path: Its file.
        prefix: Where in a recipe the part belongs.
    """
    faults = [_describe(fault, root, path, prefix) for fault in error.errors(include_url=False)]
    return RecipeError("\n".join(faults), mend="`edgesmith schema` prints all keys with their meaning.")


def _apply(content: dict[str, Any], setting: str) -> None:
    name, equals, value = setting.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {setting}: must look like targets.server.quantize.method=static-int8")
    holder: Any = content
    for key in keys[:-1]:
        if isinstance(holder, list) and key.isdigit() and int(key) < len(holder):
            holder = holder[int(key)]
        elif isinstance(holder, dict):
            holder = holder.setdefault(key, {})
        else:
            raise RecipeError(f"--set {setting}: {key!r} leads nowhere: its parent holds a plain value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {setting}: the value is not YAML: {error}") from error
    if isinstance(holder, list) and keys[-1].isdigit() and int(keys[-1]) < len(holder):
        holder[int(keys[-1])] = parsed
    elif isinstance(holder, dict):
        holder[keys[-1]] = parsed
    else:
        raise RecipeError(f"--set {setting}: {keys[-1]!r} leads nowhere: its parent holds a plain value")


def _refuse_duplicates(node: yaml.Node, path: Path) -> None:
    """YAML readers keep the last of two equal keys and say nothing."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(f"{path}:{line}: {key.value!r} stands there twice, first on line {seen[key.value]}")
            seen[key.value] = line
            _refuse_duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value, path)


def _describe(fault: Any, root: yaml.Node, path: Path, prefix: tuple[str, ...]) -> str:
    """One line for one fault: file, line, key, what is wrong, the nearest key."""
    location = [part for part in fault["loc"] if _is_key(part)]
    where = ".".join(str(part) for part in location)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = sorted(_known_keys((*prefix, *fault["loc"][:-1])))
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif fault["type"] == "missing":
        message = "is missing"
    elif fault["type"] != "value_error" and not isinstance(fault["input"], dict | list):
        message += f", not {fault['input']!r}"
    if fault["type"] in ("less_than", "less_than_equal") and 1 in (fault.get("ctx") or {}).values():
        message += "; it is a share: 0.05 means 5 %"
    line = _line(root, location)
    return f"{path}:{line}: {where + ': ' if where else ''}{message}"


def _is_key(part: Any) -> bool:
    """Pydantic puts names of union members and validators among the keys."""
    return isinstance(part, int) or not any(mark in part for mark in "[(")


def _known_keys(location: Iterable[Any]) -> set[str]:
    """The keys that the schema knows at a place, read off the JSON Schema so that there is one truth."""
    schema = Recipe.model_json_schema()
    nodes = [schema]
    for part in location:
        below = [child for node in nodes for child in _children(_resolve(node, schema), part)]
        nodes = below or nodes  # a name of a union member: stay
    return {key for node in nodes for inner in _resolve(node, schema) for key in inner.get("properties", {})}


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    return [inner for option in node.get("anyOf", []) for inner in _resolve(option, schema)] or [node]


def _children(nodes: list[dict[str, Any]], part: Any) -> list[dict[str, Any]]:
    found = []
    for node in nodes:
        if isinstance(part, int):
            found.extend([node["items"]] if isinstance(node.get("items"), dict) else [])
        elif part in node.get("properties", {}):
            found.append(node["properties"][part])
        elif isinstance(node.get("additionalProperties"), dict):
            found.append(node["additionalProperties"])
    return found


def _line(node: yaml.Node, location: Iterable[Any]) -> int:
    """The line of the deepest key of `location` that the file has."""
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            hits = [(key, value) for key, value in node.value if key.value == str(part)]
            if not hits:
                break
            key, node = hits[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
