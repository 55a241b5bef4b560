"""A recipe's own parts: the model, its data, the steps, how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from edgesmith.gates import Gates
from edgesmith.recipe.steps import DistillStep, MergeStep, PruneStep, Step, TrimVocabularyStep
from edgesmith.recipe.strict import Name, Positive, Strict
from edgesmith.recipe.targets import OnnxTarget, Target

__all__ = [
    "AdapterRef",
    "CalibrationRef",
    "DataRefs",
    "Measure",
    "ModelRef",
    "Recipe",
    "Scenario",
]

Scenario = Literal["single", "server", "offline"]


def _one_or_more(value: Any) -> Any:
    """`adapter: a` and `adapter: [a, {path: b, weight: 0.5}]` mean lists of references."""
    return [value] if isinstance(value, str | dict) else value


def _expand_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class AdapterRef(Strict):
    """An adapter and how much of it goes into the merge."""

    path: str
    """Folder with adapter_config.json and adapter_model.safetensors."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """The adapter's change of each weight is multiplied by this before it is added."""


Adapters = Annotated[tuple[Annotated[AdapterRef, BeforeValidator(_expand_path)], ...], BeforeValidator(_one_or_more)]


class ModelRef(Strict):
    """The checkpoint to start from."""

    base: str
    """A Hugging Face folder with safetensors weights, or a hub id such as `org/name`."""
    revision: str | None = None
    """Commit or tag of a hub id; without one the newest is taken, and tomorrow's may be another."""
    adapter: Adapters = ()
    """One PEFT adapter folder, or a list of them with weights."""


class CalibrationRef(Strict):
    """What activations are measured on."""

    path: str
    """JSONL, CSV or TSV file of rows; for a language model also a text file."""
    num_samples: Annotated[int | None, Field(ge=2)] = None
    """How many rows are drawn from it, by a fixed seed: 128 when left out. For a language model windows of 512
    tokens, evenly from the whole text: 40 when left out."""


class DataRefs(Strict):
    """Files of real data, relative to the recipe."""

    eval: str
    """Held-out rows: accuracy is measured on all of them, parity and latency on some. For a language model a text
    file, or rows with a column `text`: perplexity and divergence are measured on it."""
    train: str | None = None
    """Rows (of a language model: text) that distill and prune train on, and whose tokens trim-vocabulary keeps."""
    unlabelled: str | None = None
    """More rows or lines of text without labels, on which a student learns what its teacher says of them."""
    prompts: str | None = None
    """For a language model: held-out rows with `prompt` and `reference`; the artifact's answers are compared with
    the references."""
    calibration: Annotated[CalibrationRef | None, BeforeValidator(_expand_path)] = None
    """Rows (or text) for calibration; needed by static quantization and by importance matrices."""
    columns: dict[str, str] = {}  # noqa: RUF012
    """The task's column name → the file's, where they differ (`{text: body, label: topic}`)."""


class Measure(Strict):
    """How artifacts are measured."""

    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of the engine; one thread is what an edge box or a busy server gives a request."""
    length: Annotated[int | None, Field(ge=2)] = None
    """Tokens of every timed request, made of real text; each row's own length when left out. A language
    model's prompts are cut from data.eval: 128 tokens when left out, unless there are data.prompts."""
    seconds: Positive | None = None
    """How long each scenario, and the comparison with the baseline, is timed. Left out, long enough for the usual
    verdicts: 15 to 30 s, and as many requests as the gates' percentiles need."""
    scenarios: tuple[Scenario, ...] = ("single",)
    """How requests come: `single`, one after the other; `server`, at random times whether or not the last one is
    answered; `offline`, all at once, answered in batches. What a gate needs is measured in any case, and `single`
    always."""
    rate: Positive | None = None
    """Requests that arrive in a second in scenario `server`; half of what the artifact can answer when left out."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Of a language model: tokens of every timed answer."""
    window: Annotated[int, Field(ge=16, multiple_of=2)] = 512
    """Of a language model: tokens that it reads at once when perplexity is measured; the second half is scored."""
    num_windows: Annotated[int, Field(ge=2)] = 64
    """Of a language model: windows at most, evenly from the whole text. With fewer than 8 there are no intervals."""


_RANKS: Mapping[type[Strict], int] = {MergeStep: 0, TrimVocabularyStep: 1, PruneStep: 2, DistillStep: 2}


class Recipe(Strict):
    """One command's work: checkpoint → artifacts → measurements → verdicts."""

    version: Literal[1]
    """Of this format."""
    name: Name
    """Names the output folder."""
    task: Literal[
        "text-classification", "token-classification", "feature-extraction", "image-classification", "text-generation"
    ]
    """What the model does: decides model class, pre-processing and metrics."""
    model: ModelRef
    data: DataRefs
    steps: tuple[Step, ...] = ()
    """What is done to the checkpoint before it is exported, in order: merge, trim-vocabulary, prune and distill."""
    targets: Annotated[dict[Name, Target], Field(min_length=1)]
    """Name → artifact to make. All of them are made from the same checkpoint."""
    baseline: str = "fp32"
    """What gates compare with: `fp32` is the unquantized export of the checkpoint before anything was trimmed, pruned
    or distilled (of a language model that checkpoint itself with its final vocabulary, run in torch); else an
    artifact's folder."""
    gates: Gates = Gates()
    """What every target must hold, unless it has a gate of the same kind itself."""
    measure: Measure = Measure()
    seed: int = 0
    """Of every random choice."""

    def gates_of(self, target: str) -> Gates:
        """What a target must hold: the recipe's gates, its own in their place."""
        own = self.targets[target].gates
        return self.gates if own is None else self.gates.updated(own)

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return self.task == "text-generation"

    @model_validator(mode="after")
    def _check_steps(self) -> Recipe:
        merges = sum(isinstance(step, MergeStep) for step in self.steps)
        if merges > 1:
            raise ValueError("steps: merge stands there twice; list all adapters under model.adapter")
        if self.model.adapter and not merges:
            raise ValueError("model.adapter is set but steps has no merge: add `steps: [merge]`")
        if merges and not self.model.adapter:
            raise ValueError("steps has merge but there is no model.adapter")
        ranks = [_RANKS[type(step)] for step in self.steps]
        if ranks != sorted(ranks):
            raise ValueError(
                "steps: the order is merge, trim-vocabulary, then prune and distill: what is trained has its final "
                "vocabulary then, and its teacher too"
            )
        if ranks.count(_RANKS[TrimVocabularyStep]) > 1:
            raise ValueError("steps: trim-vocabulary stands there twice")
        return self

    @model_validator(mode="after")
    def _check_students(self) -> Recipe:
        for position, step in enumerate(self.steps):
            if not isinstance(step, DistillStep):
                continue
            options, is_cut = step.distill, any(isinstance(one, PruneStep) for one in self.steps[:position])
            if not (options.student or options.num_layers or options.layers not in ("uniform", "influence") or is_cut):
                raise ValueError("steps: distill makes nothing smaller: give num_layers or a student, or prune before")
            if is_cut and (options.student or options.num_layers):
                raise ValueError("steps: distill after prune trains what is left; num_layers belongs to prune then")
        return self

    @model_validator(mode="after")
    def _check_step_data(self) -> Recipe:
        data = self.data
        for step in self.steps:
            match step:
                case DistillStep() if data.train is None:
                    raise ValueError("steps: distill needs data.train, what the student is trained on")
                case PruneStep(prune=options) if options.needs_rows and not (data.train or data.calibration):
                    raise ValueError(f"steps: prune by {options.measure} needs data.train or data.calibration")
                case TrimVocabularyStep(trim_vocabulary=trim) if not (trim.corpus or data.train or data.calibration):
                    raise ValueError("steps: trim-vocabulary needs a corpus, or data.train, whose tokens stay")
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Recipe:
        for name, target in self.targets.items():
            if isinstance(target, OnnxTarget) is self.generates:
                fits = "gguf or genai" if self.generates else "onnx"
                raise ValueError(f"targets.{name}: {self.task} cannot be made into {target.format}; use {fits}")
            if target.calibrates and not self.data.calibration:
                kind = "text" if self.generates else "rows"
                raise ValueError(f"targets.{name}: {target.calibrates} needs data.calibration, a file of real {kind}")
        return self

    @model_validator(mode="after")
    def _check_generation(self) -> Recipe:
        if not self.generates:
            if self.data.prompts is not None:
                raise ValueError(f"data.prompts is for text-generation; {self.task} is judged on data.eval")
            return self
        if self.baseline != "fp32":
            raise ValueError("baseline: a language model is compared with its checkpoint; leave it out")
        if self.measure.rate is not None or self.measure.scenarios != ("single",):
            raise ValueError("measure: a language model is timed one answer at a time; leave scenarios and rate out")
        return self
