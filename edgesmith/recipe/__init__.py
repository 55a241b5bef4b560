"""Recipes: what to make, from what, and what it must hold, as strict YAML.

Unknown keys, duplicate keys and wrong types are errors that name the line and the nearest key.
"""

from __future__ import annotations

from edgesmith.recipe.model import (
    AdapterRef,
    CalibrationRef,
    DataRefs,
    Measure,
    ModelRef,
    Recipe,
    Scenario,
)
from edgesmith.recipe.reader import load_recipe, recipe_error
from edgesmith.recipe.steps import (
    DistillOptions,
    DistillStep,
    MergeOptions,
    MergeStep,
    PruneOptions,
    PruneStep,
    Step,
    TrainOptions,
    TrimVocabularyOptions,
    TrimVocabularyStep,
)
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
    "DistillOptions",
    "DistillStep",
    "FloatType",
    "GenaiQuantizeOptions",
    "GenaiTarget",
    "GgufQuantizeOptions",
    "GgufTarget",
    "Measure",
    "MergeOptions",
    "MergeStep",
    "ModelRef",
    "OnnxTarget",
    "OptimizeFor",
    "PruneOptions",
    "PruneStep",
    "QuantizeMethod",
    "QuantizeOptions",
    "Recipe",
    "Scenario",
    "Step",
    "Target",
    "TrainOptions",
    "TrimVocabularyOptions",
    "TrimVocabularyStep",
    "load_recipe",
    "recipe_error",
]
