"""Continuous batching on llama.cpp: texts join and leave between steps, and each step reads tokens of all of them.

A text written beside others can differ from the same text written alone, by llama.cpp's arithmetic: it multiplies one
row and several rows by other code, and adds up attention in the order in which tokens lie in the room. Logits of
SmolLM2-135M in fp32 differ by 0.003 (root mean square), and its likeliest tokens are the same; with 5-bit weights, for
which activations are rounded to 8 bits, by 0.16, so that in some 4 % of steps another token is the likeliest. With one
slot the tokens are those of `LlamaEngine`, each and every one.

For the same reason a text depends on how its prompt was read: in parts of other lengths, where its start was known
already. A text that is to be repeatable reads its prompt afresh, in parts of one length, and in an empty room where no
other one is being written. It is then the same each time, as long as no other one is written beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgesmith.errors import EdgesmithError, UsageError
from serve.runtime.generation import TextChunk, check_request
from serve.runtime.gguf_engine import LlamaEngine
from serve.runtime.llama_answer import LlamaAnswer
from serve.runtime.llama_library import LlamaModel
from serve.runtime.llama_slots import LlamaSlots, SlotRead, bytes_per_token, common_length
from serve.runtime.text_writer import Text, TextRequest

__all__ = ["LlamaText", "LlamaWriter", "choose_room"]

PROMPT_TOKENS_ALONE = 256
"""Of a step in which no answer is waiting for its next token. Larger ones read no faster on a CPU."""
PROMPT_TOKENS_BESIDE = 32
"""Of a step that writes answers too: more would make them stutter, and fewer cost more each (10 % at 16)."""

_MOST_BYTES = 512 << 20
"""For keys and values, where nothing else is asked for."""
_MAX_TOKEN_BYTES = 512
"""No token of a vocabulary is longer; a prompt above it times the context need not be split to be refused."""


@dataclass(slots=True, eq=False)
class LlamaText(Text):
    """A text in a slot.

    Attributes:
        tokens: Of the prompt.
        grammar: That the answer follows.
        slot: Where it is written.
        num_read: Tokens of the prompt that were read.
        answer: What is made of its logits; None before it is begun.
    """

    tokens: tuple[int, ...] = ()
    grammar: str | None = None
    slot: int = -1
    num_read: int = 0
    answer: LlamaAnswer | None = None

    @property
    def num_wanted(self) -> int:
        """The most tokens that it can come to."""
        return len(self.tokens) + self.request.max_tokens


class LlamaWriter:
    """Writes several texts at a time.

    A model with a recurrent state writes one at a time: the state is that of a whole text, and can be neither cut nor
    shared. Each text is admitted when there is room for the longest answer that it may get, so that none that was
    begun has to be put off.

    Args:
        engine: Whose model and adapters are used; it belongs to the writer from now on.
        num_slots: Texts at a time.
        num_tokens: The most tokens of all texts together; by default what `choose_room` says.

    Attributes:
        num_slots: Texts at a time.
        total_tokens: The most tokens of all texts together.
        context_length: The most tokens of one text: `total_tokens`, or what the model was trained with.
        size_bytes: Memory of keys and values.

    Raises:
        ArtifactError: llama.cpp cannot make the room, such as for want of memory.
    """

    is_engine_free = True

    def __init__(self, engine: LlamaEngine, *, num_slots: int, num_tokens: int | None = None) -> None:
        self._engine = engine
        self.total_tokens = num_tokens or choose_room(engine.model, num_slots)
        self.context_length = min(self.total_tokens, engine.model.trained_length)
        self._texts: dict[int, LlamaText] = {}  # by slot, in the order of their beginnings
        self.num_slots = num_slots
        self._slots: LlamaSlots | None = self._make_slots()
        if num_slots > 1 and not self._slots.forgets_parts:
            self._slots.close()
            self.num_slots = 1
            self._slots = self._make_slots()
        self.size_bytes = self._slots.size_bytes
        self._used = [0] * self.num_slots  # when a text was last written there
        self._clock = 0
        # Of one slot, as LlamaEngine reads them; of several, as many as make nobody's answer stutter.
        self._repeatable_part = PROMPT_TOKENS_ALONE if self.num_slots == 1 else PROMPT_TOKENS_BESIDE

    def _make_slots(self) -> LlamaSlots:
        return self._engine.make_slots(
            num_slots=self.num_slots, num_tokens=self.total_tokens, num_batch=PROMPT_TOKENS_ALONE + self.num_slots
        )

    def prepare(self, request: TextRequest) -> LlamaText:
        """Split the prompt, and check that it fits; see `serve.runtime.text_writer.TextWriter`."""
        if len(request.prompt) > self.context_length * _MAX_TOKEN_BYTES:
            raise UsageError(
                f"the prompt has {len(request.prompt):,} characters; the model takes {self.context_length:,} tokens",
                mend="Shorten the prompt.",
            )
        tokens, grammar = self._engine.check_prompt(
            request.prompt, grammar=request.grammar, json_schema=request.json_schema
        )
        check_request(
            num_prompt=len(tokens), max_tokens=request.max_tokens, context_length=self.context_length,
            stop=request.stop,
        )  # fmt: skip
        return LlamaText(request, num_prompt_tokens=len(tokens), tokens=tuple(tokens), grammar=grammar)

    def begin(self, text: LlamaText) -> bool:
        """Give a text the slot that saves most reading, if there is one, and room for its answer."""
        slots = self._opened()
        reserved = sum(other.num_wanted for other in self._texts.values()) + text.num_wanted
        if len(self._texts) == self.num_slots or reserved > self.total_tokens:
            return False
        request = text.request
        text.answer = LlamaAnswer(
            self._engine.model, prompt=text.tokens, max_tokens=request.max_tokens, sampling=request.sampling,
            stop=request.stop, grammar=text.grammar, extra_ends=self._engine.extra_ends,
            num_logprobs=request.num_logprobs,
        )  # fmt: skip
        try:
            if request.sampling.is_repeatable:
                text.slot, text.num_read = self._take_empty_slot(slots), 0
            else:
                text.slot, text.num_read = self._take_slot(slots, text.tokens)
        except BaseException:
            text.answer.close()
            raise
        text.num_reused_tokens = text.num_read
        self._texts[text.slot] = text
        self._make_room(slots, reserved)
        return True

    def _take_slot(self, slots: LlamaSlots, tokens: tuple[int, ...]) -> tuple[int, int]:
        """Choose a free slot; gives it, and how many of the tokens it holds.

        The start of another text is shared rather than taken over, so that the other one can go on later too.
        """
        prompt = list(tokens[:-1])  # the last one is read in any case, for its logits
        lengths = [common_length(held, prompt) for held in slots.held]
        free = sorted((slot for slot in range(self.num_slots) if slot not in self._texts), key=self._used.__getitem__)
        best = max(range(self.num_slots), key=lambda slot: (lengths[slot], slot in free, self._used[slot]))
        is_continued = lengths[best] == len(slots.held[best])
        if best in free and (is_continued or len(free) == 1):
            return best, slots.keep(best, lengths[best])
        oldest = next(slot for slot in free if slot != best)
        return oldest, slots.share(best, oldest, lengths[best])

    def _take_empty_slot(self, slots: LlamaSlots) -> int:
        """Choose a free slot, and forget what it holds; where none is in use, forget what all hold.

        What lies in the room decides where a text's tokens lie, and in which order they are added up.
        """
        if not self._texts:
            slots.clear()
        slot = min((slot for slot in range(self.num_slots) if slot not in self._texts), key=self._used.__getitem__)
        slots.keep(slot, 0)
        return slot

    def _make_room(self, slots: LlamaSlots, reserved: int) -> None:
        """Forget texts that are over, those first that were written longest ago, until all promises can be kept."""
        free = sorted((slot for slot in range(self.num_slots) if slot not in self._texts), key=self._used.__getitem__)
        held = sum(len(slots.held[slot]) for slot in free)
        for slot in free:
            if reserved + held <= self.total_tokens:
                return
            held -= len(slots.held[slot])
            slots.keep(slot, 0)

    def step(self) -> list[tuple[LlamaText, TextChunk | EdgesmithError]]:
        """Read the last token of every answer, and a part of the prompts that are not read yet, in one run."""
        if not self._texts:
            return []
        slots = self._opened()
        reads = self._choose_reads()
        slots.read(reads)
        found: list[tuple[LlamaText, TextChunk | EdgesmithError]] = []
        for read in reads:
            text = self._texts[read.slot]
            text.num_read += len(read.tokens)
            if not read.wants_logits or text.answer is None:
                continue
            try:
                chunk: TextChunk | EdgesmithError = text.answer.write(slots.logits(read.slot))
            except EdgesmithError as error:
                chunk = error
            if isinstance(chunk, EdgesmithError) or chunk.finish_reason is not None:
                self.drop(text)
            found.append((text, chunk))
        return found

    def _choose_reads(self) -> list[SlotRead]:
        """One token of every answer; prompts share the rest of the step, and short ones leave theirs to long ones.

        A repeatable prompt gets its whole part or none, apart from what the others share: beside answers one such
        prompt a step, the one that was begun first.
        """
        reads: list[SlotRead] = []
        reading: list[LlamaText] = []
        repeatable: list[LlamaText] = []
        for text in self._texts.values():
            if text.answer is not None and text.answer.token is not None:
                reads.append(SlotRead(text.slot, (text.answer.token,), True))
            else:
                (repeatable if text.request.sampling.is_repeatable else reading).append(text)
        most_repeatable = 1 if reads else max(1, PROMPT_TOKENS_ALONE // (2 * self._repeatable_part))
        left = PROMPT_TOKENS_BESIDE if reads else PROMPT_TOKENS_ALONE
        reads += [_part(text, self._repeatable_part) for text in repeatable[:most_repeatable]]
        left = max(min(left, self._opened().num_batch - sum(len(read.tokens) for read in reads)), 0)
        reading.sort(key=lambda text: len(text.tokens) - text.num_read)
        for index, text in enumerate(reading):
            read = _part(text, -(-left // (len(reading) - index)))
            left -= len(read.tokens)
            if read.tokens:
                reads.append(read)
        return reads

    def drop(self, text: LlamaText) -> None:
        """Free a text's slot; what was read stays there for the next one."""
        if text.answer is not None:
            text.answer.close()
        if self._texts.get(text.slot) is text:
            del self._texts[text.slot]
            self._clock += 1
            self._used[text.slot] = self._clock

    def renew(self) -> None:
        """Make the room anew."""
        for text in list(self._texts.values()):
            self.drop(text)
        self._free_slots()
        self._slots = self._make_slots()

    def _opened(self) -> LlamaSlots:
        """The room; it is made again if that failed last time."""
        if self._slots is None:
            self._slots = self._make_slots()
        return self._slots

    def _free_slots(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.close()

    def close(self) -> None:
        """Free the room and the engine. Closing twice is harmless."""
        for text in list(self._texts.values()):
            self.drop(text)
        self._free_slots()
        self._engine.close()


def _part(text: LlamaText, most: int) -> SlotRead:
    """The next tokens of a prompt."""
    tokens = text.tokens[text.num_read : text.num_read + most]
    return SlotRead(text.slot, tokens, text.num_read + len(tokens) == len(text.tokens))


def choose_room(model: LlamaModel, num_slots: int) -> int:
    """Tokens that there should be room for: one text as long as the model was trained with, or 1,024 for each slot.

    It is less where keys and values would take more than half a GiB, all of which is resident from the start.
    """
    trained = model.trained_length
    fits = max(1024, _MOST_BYTES // max(1, bytes_per_token(model)))
    return min(trained * num_slots, max(trained, 1024 * num_slots), fits)
