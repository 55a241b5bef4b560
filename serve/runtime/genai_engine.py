"""Language models on onnxruntime-genai's CPU provider."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from serve.runtime import EngineOptions
from serve.runtime.genai_folder import GenaiFolder, read_genai_folder
from serve.runtime.genai_library import first_line, load_library
from serve.runtime.generation import GREEDY, Sampling, TextChunk, check_request, check_tokens
from serve.runtime.sampling import choose_token
from serve.runtime.stop_strings import StopFilter
from serve.runtime.text_stream import load_tokenizer, stream_text

__all__ = ["GenaiEngine", "open_engine"]

_TOKENIZER = "tokenizer.json"
_NUM_SEEDS = 2**31  # the runtime takes no larger ones


class GenaiEngine:
    """A folder that onnxruntime-genai opened.

    Text is split by the `tokenizers` library and the folder's `tokenizer.json`, as it was in training; the runtime's
    own tokenizer, which its C++ users have, differs on some texts (`export.genai.tokenizer_parity` counts them).

    Args:
        folder: As `read_genai_folder` let it through.
        tokenizer: The folder's.
        options: Threads, and the most tokens of a text.

    Raises:
        ArtifactError: The runtime cannot open the model.
        MissingExtraError: onnxruntime-genai is not installed.
    """

    def __init__(self, folder: GenaiFolder, tokenizer: Tokenizer, options: EngineOptions) -> None:
        self._library = load_library()
        self._tokenizer = tokenizer
        self._ends = folder.ends
        self._chunk = options.num_batch or 0
        self.num_vocabulary = folder.num_vocabulary
        self.context_length = min(folder.context_length, options.num_context or folder.context_length)
        self.name = f"onnxruntime-genai {self._library.__version__} (CPU)"
        self._model: Any = self._load(folder, options.threads)

    def _load(self, folder: GenaiFolder, threads: int) -> Any:
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "log_severity_level": 4}
        try:
            config = self._library.Config(str(folder.path))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            return self._library.Model(config)
        except Exception as error:  # the library raises plain RuntimeError and others
            raise ArtifactError(
                f"{folder.path}: {self.name} cannot open it: {first_line(error)}",
                mend="If the model is sound, it may need a newer onnxruntime-genai.",
            ) from error

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Split a text as the model reads it; see `serve.runtime.generation.GenerationEngine`."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        return len(self.tokenize(prompt))

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one pass; see `serve.runtime.generation.GenerationEngine`."""
        model = self._opened()
        # The runtime itself reads beyond its tables for a token that is in none.
        check_tokens(tokens, first=first, num_vocabulary=self.num_vocabulary, context_length=self.context_length)
        generator = self._start(model, tokens, len(tokens), chunk=0)
        values = np.asarray(generator.get_output("logits"))
        return np.ascontiguousarray(values[0, first:], dtype=np.float32)

    def _start(
        self,
        model: Any,
        tokens: Sequence[int],
        max_length: int,
        *,
        chunk: int,
        schema: str | None = None,
        sampling: Sampling = GREEDY,
    ) -> Any:
        """Read a text; a generator that has its logits. The sampling is of what the runtime chooses by itself."""
        try:
            params = self._library.GeneratorParams(model)
            params.set_search_options(
                max_length=max_length, min_length=0, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
                chunk_size=chunk, **self._search(sampling),
            )  # fmt: skip
            if schema is not None:
                params.set_guidance("json_schema", schema)
            generator = self._library.Generator(model, params)
            generator.append_tokens(np.asarray(tokens, dtype=np.int32))
        except Exception as error:  # the library raises plain RuntimeError and others
            if schema is not None and "grammar" in str(error):
                raise UnsupportedError(
                    f"onnxruntime-genai cannot follow this schema: {first_line(error)}",
                    mend="Leave out of the schema what it names.",
                ) from error
            raise UsageError(f"onnxruntime-genai fails on {len(tokens)} tokens: {first_line(error)}") from error
        return generator

    def _search(self, sampling: Sampling) -> dict[str, Any]:
        """The runtime's own names for how it chooses a token."""
        if sampling.is_greedy:
            return {"do_sample": False}
        return {
            "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "top_k": min(sampling.top_k, self.num_vocabulary), "random_seed": sampling.seed % _NUM_SEEDS,
        }  # fmt: skip

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Iterator[TextChunk]:
        """Continue a prompt; see `serve.runtime.generation.GenerationEngine`.

        With a schema the runtime draws by itself, for it alone knows what the schema allows: it divides by the
        temperature before it keeps the likeliest tokens, not after, and knows neither `min_p` nor a penalty.

        Raises:
            UsageError: As the protocol says.
            UnsupportedError: A grammar is given, or a schema together with `min_p` or a repeat penalty.
        """
        model = self._opened()
        if grammar is not None:
            raise UnsupportedError(
                "onnxruntime-genai does not read llama.cpp's grammars",
                mend="Give a JSON schema, or generate with GGUF.",
            )
        if json_schema is not None and (sampling.repeat_penalty != 1 or (sampling.min_p and not sampling.is_greedy)):
            raise UnsupportedError(
                "onnxruntime-genai follows a schema with neither repeat_penalty nor min_p",
                mend="Set repeat_penalty to 1, and min_p or the temperature to 0.",
            )
        ids = self.tokenize(prompt)
        check_request(num_prompt=len(ids), max_tokens=max_tokens, context_length=self.context_length, stop=stop)
        schema = None if json_schema is None else _compact(json_schema)
        tokens = self._choose(model, ids, max_tokens, sampling, schema)
        return stream_text(self._tokenizer, tokens, max_tokens=max_tokens, held=StopFilter(stop))

    def _choose(
        self, model: Any, ids: list[int], max_tokens: int, sampling: Sampling, schema: str | None
    ) -> Iterator[tuple[int, bool]]:
        """One token after the other, with whether it is the last."""
        chosen_there = GREEDY if schema is None else sampling
        longest = len(ids) + max_tokens
        generator = self._start(model, ids, longest, chunk=self._chunk, schema=schema, sampling=chosen_there)
        random, seen = np.random.default_rng(sampling.seed), list(ids)
        while True:
            if schema is None:
                token = choose_token(generator.get_logits()[0, -1], sampling, seen, random)
            else:
                generator.generate_next_token()  # chooses from what the schema allows
                token = int(generator.get_next_tokens()[0])
            seen.append(token)
            # At the greatest length the generator is done too, but the answer is cut, not complete.
            is_done = schema is not None and len(seen) < longest and generator.is_done()
            yield token, token in self._ends or is_done
            if schema is None:
                generator.append_tokens(np.array([token], dtype=np.int32))

    def _opened(self) -> Any:
        if self._model is None:
            raise UsageError("the engine is closed", mend="Open the artifact again.")
        return self._model

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""
        self._model = None


def open_engine(artifact: Artifact, options: EngineOptions) -> GenaiEngine:
    """Open an artifact of kind `genai`; see `serve.runtime.open_generation_engine`."""
    if options.adapters:
        raise UnsupportedError(
            "onnxruntime-genai takes no adapters here", mend="Merge the adapter first, or use GGUF, which takes them."
        )
    folder = read_genai_folder(artifact)
    return GenaiEngine(folder, load_tokenizer(artifact.file(_TOKENIZER), failure=ArtifactError), options)


def _compact(schema: Mapping[str, Any]) -> str:
    """The schema as text, with one way to write spaces."""
    try:
        return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
    except (TypeError, ValueError) as error:
        raise UsageError(f"the schema is no JSON: {error}") from error
