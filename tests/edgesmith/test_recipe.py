"""Recipes are strict, and their errors name the line and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.errors import RecipeError
from edgesmith.recipe import Recipe, load_recipe

GOOD = """\
version: 1
name: news
task: text-classification
model:
  base: base
  adapter: lora
data:
  eval: test.jsonl
  calibration: {path: train.jsonl, num_samples: 64}
steps: [merge]
targets:
  server: {format: onnx, quantize: {method: dynamic-int8}}
gates:
  accuracy: {max_drop: 0.01}
"""


def load(tmp_path: Path, text: str, *settings: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, settings)


def test_good_recipe_is_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.model.adapter[0].path == "lora"
    assert recipe.model.adapter[0].weight == 1
    assert recipe.data.calibration is not None
    assert recipe.data.calibration.num_samples == 64
    assert recipe.steps[0].merge.dequantize is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_drop", "max_dorp", r"recipe\.yaml:14: gates\.accuracy\.max_dorp: unknown key; did you mean 'max_drop'"),
        ("eval:", "evel:", r"recipe\.yaml:8: data\.evel: unknown key; did you mean 'eval'"),
        ("method:", "metod:", r"targets\.server\.quantize\.metod: unknown key; did you mean 'method'"),
        ("targets:", "zzz:", r"zzz: unknown key; known here: baseline, data, gates"),
        ("dynamic-int8", "int3", r"recipe\.yaml:12: .*dynamic-int8.*not 'int3'"),
        ("0.01", "much", r"gates\.accuracy\.max_drop: .*not 'much'"),
        ("steps: [merge]\n", "", r"add `steps: \[merge\]`"),
        ("steps: [merge]", "steps: [merge, merge]", "stands there twice"),
        ("steps: [merge]", "steps: [marge]", "did you mean 'merge'"),
        ("name: news", "name: ../news", "names a folder"),
        ("name: news", "name: news\nname: other", r"recipe\.yaml:3: 'name' stands there twice, first on line 2"),
        ("version: 1", "version: 2", "version"),
        ("version: 1", "version: [", "is not YAML"),
    ],
)
def test_fault_names_line_and_nearest_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, GOOD.replace("max_drop", "max_dorp").replace("eval:", "evel:"))
    assert "max_dorp" in str(caught.value)
    assert "evel" in str(caught.value)


def test_static_quantization_needs_calibration(tmp_path: Path) -> None:
    text = GOOD.replace("dynamic-int8", "static-int8").replace(
        "  calibration: {path: train.jsonl, num_samples: 64}\n", ""
    )
    with pytest.raises(RecipeError, match=r"targets\.server: static-int8 needs data\.calibration"):
        load(tmp_path, text)


def test_setting_replaces_a_value(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "targets.server.quantize.method=static-int8", "gates.size.max_mb=12", "seed=3")
    assert recipe.targets["server"].quantize is not None
    assert recipe.targets["server"].quantize.method == "static-int8"
    assert recipe.gates.size is not None
    assert recipe.gates.size.max_mb == 12
    assert recipe.seed == 3


@pytest.mark.parametrize("setting", ["nothing", "=1", "a..b=1", "name.x=1", "gates.acuracy.max_drop=0.1", "name=["])
def test_bad_setting_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(RecipeError):
        load(tmp_path, GOOD, setting)


def test_missing_file_and_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="must be a mapping"):
        load(tmp_path, "")


def test_every_key_of_the_schema_is_described() -> None:
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    blank = [
        f"{model['title']}.{name}"
        for model in models
        for name, field in model.get("properties", {}).items()
        if "description" not in field and "$ref" not in str(field)
    ]
    assert blank == []


LANGUAGE = """\
version: 1
name: novel
task: text-generation
model: {base: base}
data: {eval: held_out.txt}
targets:
  phone: {format: gguf, quantize: {type: Q4_K_M}}
  box: {format: genai, quantize: {method: int4}, gates: {divergence: {max_mean_kld: 0.2}}}
gates: {perplexity: {max_ratio: 1.05}, divergence: {max_mean_kld: 0.05}}
"""


def test_a_targets_own_gates_take_the_place_of_those_of_the_same_kind(tmp_path: Path) -> None:
    recipe = load(tmp_path, LANGUAGE)
    phone, box = recipe.gates_of("phone"), recipe.gates_of("box")
    assert phone == recipe.gates
    assert box.divergence is not None
    assert box.divergence.max_mean_kld == 0.2
    assert box.perplexity == recipe.gates.perplexity


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("targets.phone.format=ggu", "recipe.yaml:7: targets.phone: there is no format 'ggu'; did you mean 'gguf'?"),
        ("targets.phone.quantize={typ: Q4_K_M}", "targets.phone.quantize.typ: unknown key; did you mean 'type'?"),
        ("targets.phone.quantize={type: Q8_0, max_mb: 9}", "needs just one of type, bits_per_weight, max_mb"),
        ("targets.phone.quantize={max_mb: 9}", "the choice of types by measured damage needs data.calibration"),
        ("targets.phone.quantize={type: Q4_K_M, imatrix: true}", "imatrix: true needs data.calibration"),
        ("targets.phone={format: onnx}", "targets.phone: text-generation cannot be made into onnx; use gguf or genai"),
        ("targets.box.quantize.block_size=31", "targets.box.quantize.block_size"),
        ("task=text-classification", "cannot be made into gguf; use onnx"),
        ("baseline=other", "a language model is compared with its checkpoint"),
        ("measure.rate=5", "timed one answer at a time"),
    ],
)
def test_a_language_recipes_fault_names_its_place(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, LANGUAGE, setting)
    assert said in str(caught.value)
