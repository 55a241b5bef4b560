"""Recipes: what to make, from what, and what it must hold, as strict YAML.

Unknown keys, duplicate keys and wrong types are errors that name the line and the nearest key.
"""

from __future__ import annotations

from edgesmith.recipe.model import (
    AdapterRef,
    CalibrationRef,
    DataRefs,
    Measure,
    MergeOptions,
    ModelRef,
    Recipe,
    Scenario,
)
from edgesmith.recipe.reader import load_recipe, recipe_error
from edgesmith.recipe.targets import (
    FloatType,
    GenaiQuantizeOptions,
    GenaiTarget,
    GgufQuantizeOptions,
    GgufTarget,
    OnnxTarget,
    OptimizeFor,
    QuantizeMethod,
    QuantizeOptions,
    Target,
)

__all__ = [
    "AdapterRef",
    "CalibrationRef",
    "DataRefs",
    "FloatType",
    "GenaiQuantizeOptions",
    "GenaiTarget",
    "GgufQuantizeOptions",
    "GgufTarget",
    "Measure",
    "MergeOptions",
    "ModelRef",
    "OnnxTarget",
    "OptimizeFor",
    "QuantizeMethod",
    "QuantizeOptions",
    "Recipe",
    "Scenario",
    "Target",
    "load_recipe",
    "recipe_error",
]
