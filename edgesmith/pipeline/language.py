"""A recipe whose targets write text: export, prove, quantize, and measure against the checkpoint itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgesmith.artifact import Artifact
from edgesmith.data import read_rows
from edgesmith.errors import UsageError
from edgesmith.pipeline.base import TargetResult, Walk
from edgesmith.pipeline.checkpoints import Checkpoints
from edgesmith.pipeline.needs import needed
from edgesmith.recipe import GenaiTarget, GgufQuantizeOptions, GgufTarget
from edgesmith.stages.engines import GENERATES
from edgesmith.stages.genai_export import GenaiExportStage
from edgesmith.stages.generate import GenerateStage
from edgesmith.stages.gguf_export import GgufExportStage
from edgesmith.stages.gguf_quantize import GgufQuantizeStage
from edgesmith.stages.imatrix import ImatrixSource, ImatrixStage, imatrix_model, wants_imatrix
from edgesmith.stages.language import AnswersStage, LanguageStage, ReferenceStage
from edgesmith.stages.prove_export import ProveExportStage
from edgesmith.stages.rows import Rows
from edgesmith.stages.sensitivity import SensitivityStage
from edgesmith.stages.texts import CALIBRATION_WINDOW, NUM_CALIBRATED, Texts
from edgesmith.tasks.folder import read_json_object

__all__ = ["LanguageWalk"]

NUM_TIMED = 64
PROMPT_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class LanguageWalk(Walk):
    """The steps of language models."""

    @cached_property
    def _texts(self) -> Texts:
        """Held-out text."""
        measure = self.recipe.measure
        return self._text(self.recipe.data.eval, "data.eval", measure.window, measure.num_windows)

    @cached_property
    def _calibration(self) -> Texts | None:
        given = self.recipe.data.calibration
        if given is None:
            return None
        return self._text(given.path, "data.calibration", CALIBRATION_WINDOW, given.num_samples or NUM_CALIBRATED)

    def _text(self, path: str, key: str, window: int, num_windows: int) -> Texts:
        columns = self.recipe.data.columns
        return Texts(path=self.data_file(path, key), window=window, num_windows=num_windows, columns=columns)

    @cached_property
    def _prompts(self) -> Rows | None:
        """Prompts with references."""
        path = self.recipe.data.prompts
        return self.rows(path, None, "data.prompts") if path else None

    def check_files(self) -> None:
        """Find before any work what would stop it at the end."""
        self._texts.read()
        calibration = self._calibration
        if calibration is not None:
            calibration.read()
            if calibration.digest == self._texts.digest:
                raise UsageError(
                    f"{calibration.path}: is the held-out text; gates would be judged on what it was tuned to",
                    mend="Calibrate on training text.",
                )
        if self._prompts is not None and self._prompts.path is not None:
            for _ in read_rows(self._prompts.path):
                pass
        for name, target in self.recipe.targets.items():
            self._check_gates(name)
            self.previous(name, GENERATES)
            if isinstance(target, GgufTarget):
                self._check_target(name, target)

    def _check_gates(self, name: str) -> None:
        """Refuse what nothing will be measured for."""
        self.check_gates(name)
        if self.recipe.gates_of(name).needs_answers and self._prompts is None:
            raise UsageError(
                "gates.accuracy (and regression.max_drop) judge a language model's answers, and there are no prompts",
                mend="Set data.prompts, a file of rows with `prompt` and `reference`.",
            )

    def _check_target(self, name: str, target: GgufTarget) -> None:
        from compress.gguf.types import find_file_type, find_tensor_type

        if target.converter is not None and not (self.folder / target.converter).exists():
            raise UsageError(
                f"{self.folder / target.converter}: no such converter",
                mend=f"targets.{name}.converter is relative to the recipe.",
            )
        quantize = target.quantize
        if quantize is None:
            return
        if isinstance(quantize.imatrix, str):
            self.data_file(quantize.imatrix, f"targets.{name}.quantize.imatrix")
        for tensor_type in quantize.tensor_types.values():
            find_tensor_type(tensor_type)
        needs = quantize.type is not None and find_file_type(quantize.type).needs_imatrix
        if needs and not self._wants_imatrix(quantize):
            raise UsageError(
                f"targets.{name}: {quantize.type} needs an importance matrix",
                mend="Set data.calibration, a file of real text, and leave imatrix out.",
            )

    def check_base(self, base: Artifact) -> None:
        """Read prompts and cut texts before the long steps, so that a bad row or a short text is found at once."""
        if self._prompts is not None and self._prompts.path is not None:
            from bench.language.answers import read_prompts

            read_prompts(self._prompts.path, columns=self._prompts.columns)
        longest = read_json_object(base.folder / "config.json").get("max_position_embeddings")
        if isinstance(longest, int) and self._texts.window > longest:
            raise UsageError(f"measure.window is {self._texts.window}, but the model takes at most {longest} tokens")
        self._texts.cut_by_tokenizer(base.folder)
        if self._calibration is not None:
            self._calibration.cut_by_tokenizer(base.folder)

    def targets(self, checkpoints: Checkpoints) -> tuple[TargetResult, ...]:
        """Make and measure every target; what the whole model predicts is recorded once for all."""
        # A divergence needs the same tokens on both sides: the whole model has the final vocabulary here.
        whole = checkpoints.teacher
        made = {name: self._make(name, target, checkpoints.final) for name, target in self.recipe.targets.items()}
        reference = self.walker.step(
            "reference",
            f"the checkpoint in torch on {self._texts.path.name}",
            [("checkpoint", whole)],
            lambda: ReferenceStage(checkpoint=needed(whole), texts=self._texts, threads=self.recipe.measure.threads),
        )
        return tuple(
            self._result(name, artifact, unquantized, whole, reference, proofs)
            for name, (artifact, unquantized, proofs) in made.items()
        )

    def _result(
        self,
        name: str,
        artifact: Artifact | None,
        unquantized: Artifact | None,
        checkpoint: Artifact | None,
        reference: Artifact | None,
        proofs: dict[str, Artifact | None],
    ) -> TargetResult:
        """Measure one target."""
        evidence = proofs | self._measure(name, artifact, checkpoint, reference)
        previous = self.previous(name, GENERATES)
        if previous is not None:
            evidence["previous-language"] = self._predictions(f"{name}: eval {self.against}", previous, reference)
        if previous is not None and self._prompts is not None:
            evidence["previous-answers"] = self._answers(f"{name}: answers {self.against}", previous)
        return TargetResult(
            name=name,
            artifact=artifact,
            unquantized=unquantized,
            baseline=checkpoint,
            previous=previous,
            evidence=evidence,
        )

    def _make(
        self, name: str, target: object, checkpoint: Artifact | None
    ) -> tuple[Artifact | None, Artifact | None, dict[str, Artifact | None]]:
        """The artifact, what it was quantized from, and what proves that."""
        if isinstance(target, GgufTarget):
            return self._gguf(name, target, checkpoint)
        assert isinstance(target, GenaiTarget)  # as the recipe has checked
        precision = target.quantize.method if target.quantize else target.precision
        artifact = self.walker.step(
            f"{name}: export",
            f"onnxruntime-genai {precision}",
            [("checkpoint", checkpoint)],
            lambda: GenaiExportStage(checkpoint=needed(checkpoint), target=target, threads=self.recipe.measure.threads),
        )
        proof = self.walker.step(
            f"{name}: verify",
            "tokenizer and logits against the checkpoint",
            [("checkpoint", checkpoint), ("artifact", artifact)],
            lambda: ProveExportStage(
                checkpoint=needed(checkpoint),
                artifact=needed(artifact),
                texts=self._texts,
                threads=self.recipe.measure.threads,
            ),
        )
        return artifact, artifact, {"verify": proof}

    def _gguf(
        self, name: str, target: GgufTarget, checkpoint: Artifact | None
    ) -> tuple[Artifact | None, Artifact | None, dict[str, Artifact | None]]:
        unquantized = self.walker.step(
            f"{name}: export",
            f"GGUF {target.dtype or 'as stored'}",
            [("checkpoint", checkpoint)],
            lambda: GgufExportStage(
                checkpoint=needed(checkpoint),
                dtype=target.dtype,
                converter=self.folder / target.converter if target.converter else None,
            ),
        )
        proof = self.walker.step(
            f"{name}: verify",
            "tokenizer, chat template and logits against the checkpoint",
            [("checkpoint", checkpoint), ("artifact", unquantized)],
            lambda: ProveExportStage(
                checkpoint=needed(checkpoint),
                artifact=needed(unquantized),
                texts=self._texts,
                threads=self.recipe.measure.threads,
            ),
        )
        artifact = self._quantize(name, target.quantize, checkpoint, unquantized) if target.quantize else unquantized
        return artifact, unquantized, {"verify": proof}

    def _wants_imatrix(self, method: GgufQuantizeOptions) -> bool:
        return wants_imatrix(method, has_text=self._calibration is not None)

    def _quantize(
        self, name: str, method: GgufQuantizeOptions, checkpoint: Artifact | None, source: Artifact | None
    ) -> Artifact | None:
        imatrix: ImatrixSource | None = None
        needs: list[tuple[str, Artifact | None]] = [("source", source)]
        if isinstance(method.imatrix, str):
            imatrix = self.folder / method.imatrix
        elif self._wants_imatrix(method):
            imatrix = measured = self._imatrix(name, checkpoint, source)
            needs.append(("imatrix", measured))
        sensitivity = None
        if method.is_allocated:
            sensitivity = self._sensitivity(name, checkpoint, source, imatrix)
            needs.append(("sensitivity", sensitivity))
        return self.walker.step(
            f"{name}: quantize",
            method.name + (", importance matrix" if self._wants_imatrix(method) else ""),
            needs,
            lambda: GgufQuantizeStage(
                source=needed(source),
                method=method,
                imatrix=imatrix,
                sensitivity=sensitivity,
                texts=self._calibration if method.max_mean_kld is not None else None,
                threads=self.recipe.measure.threads,
            ),
        )

    def _imatrix(self, name: str, checkpoint: Artifact | None, source: Artifact | None) -> Artifact | None:
        texts = self._calibration
        assert texts is not None  # as the recipe has checked
        return self.walker.step(
            f"{name}: imatrix",
            f"mean squared activations on {texts.num_windows} windows of {texts.path.name}",
            [("checkpoint", checkpoint), ("source", source)],
            lambda: ImatrixStage(
                model=imatrix_model(needed(checkpoint), needed(source)),
                texts=texts,
                threads=self.recipe.measure.threads,
            ),
        )

    def _sensitivity(
        self,
        name: str,
        checkpoint: Artifact | None,
        source: Artifact | None,
        imatrix: ImatrixSource | None,
    ) -> Artifact | None:
        texts = self._calibration
        assert texts is not None  # as the recipe has checked
        return self.walker.step(
            f"{name}: sensitivity",
            f"what each tensor's rounding does, on {texts.path.name}",
            [("checkpoint", checkpoint), ("source", source)],
            lambda: SensitivityStage(
                checkpoint=needed(checkpoint),
                source=needed(source),
                texts=texts,
                imatrix=imatrix,
                threads=self.recipe.measure.threads,
            ),
        )

    def _measure(
        self, name: str, artifact: Artifact | None, checkpoint: Artifact | None, reference: Artifact | None
    ) -> dict[str, Artifact | None]:
        """Predictions, answers, sizes and speed."""
        evidence = {
            "language": self._predictions(f"{name}: eval", artifact, reference),
            "footprint": self.footprint(f"{name}: footprint", artifact),
            "bench": self._bench(f"{name}: bench", artifact),
        }
        if self._prompts is not None:
            evidence["answers"] = self._answers(f"{name}: answers", artifact)
            evidence["baseline-answers"] = self._answers(f"{name}: answers baseline", checkpoint)
        return evidence | self.loads(name, artifact)

    def _predictions(self, name: str, artifact: Artifact | None, reference: Artifact | None) -> Artifact | None:
        return self.walker.step(
            name,
            f"perplexity and divergence on {self._texts.path.name}",
            [("artifact", artifact), ("reference", reference)],
            lambda: LanguageStage(
                artifact=needed(artifact),
                reference=needed(reference),
                texts=self._texts,
                threads=self.recipe.measure.threads,
            ),
        )

    def _answers(self, name: str, artifact: Artifact | None) -> Artifact | None:
        prompts, measure = self._prompts, self.recipe.measure
        assert prompts is not None  # as the caller has asked
        return self.walker.step(
            name,
            f"all prompts of {prompts.path.name if prompts.path else ''}",
            [("artifact", artifact)],
            lambda: AnswersStage(
                artifact=needed(artifact), rows=prompts, max_tokens=measure.max_tokens, threads=measure.threads
            ),
        )

    def _bench(self, name: str, artifact: Artifact | None) -> Artifact | None:
        measure = self.recipe.measure
        # The user's own prompts as they are; otherwise prompts of one length, cut from the text.
        asks = self.recipe.data.prompts is not None and measure.length is None
        path, key = (self.recipe.data.prompts, "data.prompts") if asks else (self.recipe.data.eval, "data.eval")
        assert path is not None  # as just asked
        return self.walker.step(
            name,
            f"token by token, {measure.threads} thread(s)",
            [("artifact", artifact)],
            lambda: GenerateStage(
                artifact=needed(artifact),
                rows=self.rows(path, NUM_TIMED, key),
                threads=measure.threads,
                length=None if asks else measure.length or PROMPT_TOKENS,
                max_tokens=measure.max_tokens,
                seconds=measure.seconds,
            ),
        )
