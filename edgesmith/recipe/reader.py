"""Read recipes from YAML; every fault is named with its line and the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from edgesmith.errors import RecipeError
from edgesmith.files import storage_errors
from edgesmith.recipe.model import Recipe
from edgesmith.recipe.targets import FORMATS

__all__ = ["load_recipe", "recipe_error"]


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
    location = [part for position, part in enumerate(fault["loc"]) if _is_key(part, position, fault["loc"])]
    where = ".".join(str(part) for part in location)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        known = sorted(_known_keys((*prefix, *fault["loc"][:-1])))
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif fault["type"] == "missing":
        message = "is missing"
    elif fault["type"] == "union_tag_not_found":
        message = f"format is missing; it is one of {', '.join(FORMATS)}"
    elif fault["type"] == "union_tag_invalid":
        tag = str(fault["ctx"]["tag"])
        near = difflib.get_close_matches(tag, FORMATS, n=1)
        message = f"there is no format {tag!r}; " + (f"did you mean {near[0]!r}?" if near else _one_of(FORMATS))
    elif fault["type"] != "value_error" and not isinstance(fault["input"], dict | list):
        message += f", not {fault['input']!r}"
    if fault["type"] in ("less_than", "less_than_equal") and 1 in (fault.get("ctx") or {}).values():
        message += "; it is a share: 0.05 means 5 %"
    line = _line(root, location)
    return f"{path}:{line}: {where + ': ' if where else ''}{message}"


def _one_of(names: Sequence[str]) -> str:
    return f"known are {', '.join(names)}"


def _is_key(part: Any, position: int, location: Sequence[Any]) -> bool:
    """Pydantic puts names of union members and validators among the keys."""
    if position == 2 and location[0] == "targets":
        return part not in FORMATS  # names the member of the union that `format` chose
    if position == 2 and location[0] == "steps":
        return False  # names the step, as the key below it does
    return isinstance(part, int) or not any(mark in part for mark in "[(")


def _known_keys(location: Iterable[Any]) -> set[str]:
    """The keys that the schema knows at a place, read off the JSON Schema so that there is one truth."""
    schema = Recipe.model_json_schema()
    nodes = [schema]
    for part in location:
        below = [child for node in nodes for child in _chosen(node, part) or _children(_resolve(node, schema), part)]
        nodes = below or nodes  # a name of a union member: stay
    return {key for node in nodes for inner in _resolve(node, schema) for key in inner.get("properties", {})}


def _chosen(node: Mapping[str, Any], part: Any) -> list[dict[str, Any]]:
    """The member of a union that a key such as `format` chose, if `part` names one."""
    mapping = node.get("discriminator", {}).get("mapping", {})
    return [{"$ref": mapping[part]}] if part in mapping else []


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    options = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [inner for option in options for inner in _resolve(option, schema)] or [node]


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
