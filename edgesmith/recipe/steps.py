"""What a recipe can do to a checkpoint before it is exported: merge, trim the vocabulary, prune, distill."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from edgesmith.recipe.strict import Positive, Strict

__all__ = [
    "STEPS",
    "DistillOptions",
    "DistillStep",
    "MergeOptions",
    "MergeStep",
    "PruneOptions",
    "PruneStep",
    "Step",
    "TrainOptions",
    "TrimVocabularyOptions",
    "TrimVocabularyStep",
]

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


def _whole_from_one(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"{value:g} is neither a share below 1 nor a whole number")
    return int(value) if value >= 1 else value


Size = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_whole_from_one)]
"""A share below 1, or a number from 1 on, which is then an int."""
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Layers = Literal["uniform", "influence"] | tuple[int, ...]
Importance = Literal["magnitude", "taylor", "activation", "hessian"]


class MergeOptions(Strict):
    """How adapters are merged."""

    dequantize: bool = False
    """Allow a 4- or 8-bit base: it is turned back into floats first, at a loss that training already had."""


class MergeStep(Strict):
    """Fold the adapters into the base."""

    merge: MergeOptions = MergeOptions()


class TrimVocabularyOptions(Strict):
    """Which tokens stay. Without a size, text of the corpus is tokenized as before."""

    corpus: str | None = None
    """Text file, or rows, whose tokens stay; data.train (or data.calibration) when left out."""
    max_tokens: Annotated[int | None, Field(ge=64)] = None
    """At most so many tokens: the rarer ones of the corpus are then written with shorter ones."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Tokens that the corpus has less often go too."""
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 8
    """Fill the number of tokens up to a multiple of this with tokens that the corpus does not need; 8 is what matrix
    kernels handle at once, on tensor cores as on CPUs."""


class TrimVocabularyStep(Strict):
    """Keep the tokens that a corpus uses, and what they are built from."""

    trim_vocabulary: Annotated[TrimVocabularyOptions, Field(alias="trim-vocabulary")] = TrimVocabularyOptions()


class TrainOptions(Strict):
    """How weights are trained; shared by distillation and the recovery after pruning."""

    epochs: Positive | None = None
    """Times that the data are gone through; chosen by the kind of step when left out."""
    max_minutes: Positive | None = None
    """Stop training after so long, with the best weights so far; the result then depends on the machine. What the
    teacher reads before training begins does not count."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows (of a language model: windows) of one update, over all processes and accumulations."""
    micro_batch_size: Annotated[int | None, Field(ge=1)] = None
    """Rows computed at once; fewer need less memory. When left out the whole batch, and of a language model so many
    windows that their logits take 256 MB at most."""
    learning_rate: Positive | None = None
    """At its highest, after the warm-up; chosen by the kind of step when left out."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after the warm-up: by the last update, or the end of max_minutes."""
    max_gradient_norm: Positive = 1.0
    """Longer gradients are shortened to it."""
    weight_decay: Weight = 0.01
    """Of matrices; norms and biases have none."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates over which the learning rate rises."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Tokens of a row (of a language model: of a window) in training; the model's limit, of windows 256, when left
    out."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without a better figure after which training ends."""
    validation: Share = 0.1
    """Share of the training rows that is held out to choose the best weights; never rows of data.eval."""
    gradient_checkpointing: bool = False
    """Compute activations twice to need less memory."""


class DistillOptions(Strict):
    """What the student is, and what it learns from the teacher (the checkpoint before this step)."""

    student: str | None = None
    """Checkpoint to train; made of the teacher's own layers when left out."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Layers of the teacher that the student starts from; all of them when left out."""
    layers: Layers = "uniform"
    """Which: spread evenly, those that change the hidden states most, or by their numbers from 0."""
    soft: Weight = 1.0
    """Weight of the teacher's softened predictions (of an embedding model: of the similarities between rows)."""
    hard: Weight = 0.0
    """Weight of the labels (of a language model: of the text's own next tokens). It is that of a mean over all rows, to
    which those without a label add nothing: where few have one, give more."""
    hidden: Weight = 0.0
    """Weight of the hidden states, through a learned projection where widths differ."""
    relation: Weight = 0.0
    """Weight of the relations between queries, keys and values in the last layer (MiniLM)."""
    relation_layer: Annotated[int | None, Field(ge=0)] = None
    """Of the teacher, from 0, whose relations the student's last layer learns; the last when left out."""
    temperature: Positive | None = None
    """Softens the predictions of both; 2, and 1 for language models, when left out."""
    divergence: Literal["forward-kl", "reverse-kl", "jsd"] = "forward-kl"
    """Of language models: how the predictions are compared."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of language models: share of the batches that the student writes itself (GKD)."""
    sequence_level: bool = False
    """Of language models: train on the teacher's own continuations instead of the text."""
    cache_top_k: Annotated[int, Field(ge=0)] = 64
    """Of language models: predictions a position that are kept of the teacher, beside their sum; 0 runs it anew in
    every epoch."""
    train: TrainOptions = TrainOptions()


class DistillStep(Strict):
    """Train a smaller student to do as the teacher does."""

    distill: DistillOptions = DistillOptions()


class PruneOptions(Strict):
    """What goes: single weights, which stay as zeros, or whole structures, which really leave."""

    method: Literal["structured", "magnitude", "wanda", "sparsegpt"] = "structured"
    """The last three set single weights to zero."""
    sparsity: Share | None = None
    """Of single weights: the share of zeros in every pruned matrix."""
    pattern: str | None = None
    """Of single weights instead: `2:4` keeps two of every four in a row, which sparse tensor cores can use."""
    importance: Importance = "hessian"
    """Of structures: what decides which go."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Of structures: layers that stay."""
    layers: Layers = "influence"
    """Which: those that change the hidden states most, which harms least at once; `uniform`, spread evenly, from
    which an encoder learns best afterwards; or by their numbers from 0."""
    keep: dict[str, Size] = {}  # noqa: RUF012
    """Of structures: dimension (`ffn`, `heads`, `hidden`, `channels`) → share or number that stays."""
    max_params: Size | None = None
    """Of structures: a budget, absolute or as a share of what there is; the dimensions are chosen within it."""
    max_macs: Size | None = None
    """The same in multiply-accumulates of one row."""
    max_latency: Share | None = None
    """The same as a share of the time measured here."""
    multiple_of: Annotated[int, Field(ge=1)] = 8
    """Widths are rounded to multiples of it, which hardware prefers."""

    @model_validator(mode="after")
    def _check_method(self) -> PruneOptions:
        of_weights = {"sparsity", "pattern"}
        given = {name for name in self.model_fields_set - {"method"} if getattr(self, name) is not None}
        wrong = given & of_weights if self.method == "structured" else given - of_weights
        if wrong:
            others = "magnitude, wanda and sparsegpt" if self.method == "structured" else "method structured"
            raise ValueError(f"{sorted(wrong)[0]} means nothing to method {self.method}; it is for {others}")
        if self.method != "structured" and len(given) != 1:
            both = "both were given" if given else "neither was given"
            raise ValueError(f"method {self.method} needs a sparsity, such as 0.5, or a pattern, such as 2:4; {both}")
        if self.pattern is not None:
            parts = self.pattern.split(":")
            kept, group = map(int, parts) if len(parts) == 2 and "".join(parts).isdecimal() else (0, 0)
            if not 0 < kept < group:
                raise ValueError(f"pattern {self.pattern}: N:M keeps N of every M weights, 0 < N < M, such as 2:4")
        return self

    @property
    def measure(self) -> str:
        """What decides which weights or structures go."""
        return self.importance if self.method == "structured" else self.method

    @property
    def needs_rows(self) -> bool:
        """Whether the decision is made on real rows."""
        return self.measure != "magnitude" or self.num_layers is not None


class PruneStep(Strict):
    """Take out what matters least; a distill step after it trains what is left to do as the model before did."""

    prune: PruneOptions = PruneOptions()


STEPS = ("merge", "trim-vocabulary", "prune", "distill")


def _expand_step(value: Any) -> Any:
    """`merge` alone means `merge: {}`; anything that is no step is named here, since a union would name four."""
    if isinstance(value, Strict):
        return value
    expanded = {value: {}} if isinstance(value, str) else value
    names = list(expanded) if isinstance(expanded, dict) else []
    if len(names) != 1 or names[0] not in STEPS:
        near = difflib.get_close_matches(str(names[0]), STEPS, n=1) if len(names) == 1 else []
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(STEPS)}"
        raise ValueError(f"a step is one key, {hint}" if not near else f"there is no step {names[0]!r}; {hint}")
    return {names[0]: expanded[names[0]] or {}}


def _name_of(value: Any) -> str:
    """What tells the steps apart: their only key."""
    if isinstance(value, Strict):
        return next(iter(type(value).model_fields)).replace("_", "-")
    return str(next(iter(value)))


Step = Annotated[
    Annotated[MergeStep, Tag("merge")]
    | Annotated[TrimVocabularyStep, Tag("trim-vocabulary")]
    | Annotated[PruneStep, Tag("prune")]
    | Annotated[DistillStep, Tag("distill")],
    Discriminator(_name_of),
    BeforeValidator(_expand_step),
]
"""One step; `merge` alone means `merge: {}`."""
