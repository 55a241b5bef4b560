"""A small tagger whose rule is known: capitalised words are names, words of digits are numbers."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from edgesmith.data import Row
from edgesmith.tasks import TokenClassification, load_task, sample_texts

__all__ = ["TAGS", "make_rows", "make_tagger", "write_rows"]

TAGS = ("O", "B-NAME", "I-NAME", "B-NUM", "I-NUM")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NUM_UNUSED = 1500


def make_rows(num: int, seed: int) -> list[dict[str, Any]]:
    """Words of the packaged sentences, some of them capitalised, with numbers among them."""
    draw = random.Random(seed)
    words = sorted({word for text in sample_texts() for word in re.findall(r"[a-z]+", text)})
    return [_row([_word(draw, words) for _ in range(draw.randint(4, 12))]) for _ in range(num)]


def _word(draw: random.Random, words: list[str]) -> str:
    chance = draw.random()
    if chance < 0.1:
        return str(draw.randint(0, 999))
    return draw.choice(words).capitalize() if chance < 0.25 else draw.choice(words)


def _row(words: list[str]) -> dict[str, Any]:
    labels: list[str] = []
    for word in words:
        kind = "NUM" if word.isdigit() else "NAME" if word[0].isupper() else None
        place = "I" if labels and kind is not None and labels[-1].endswith(kind) else "B"
        labels.append("O" if kind is None else f"{place}-{kind}")
    return {"tokens": words, "labels": labels}


def make_tagger(folder: Path, *, num_layers: int = 3, steps: int = 60, seed: int = 0) -> Path:
    """Write a seeded BERT with a WordPiece tokenizer, most of whose words no row has, trained on rows of a seed."""
    size = _save_tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=size,
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: index for index, tag in enumerate(TAGS)},
    )
    model = BertForTokenClassification(config)
    model.save_pretrained(folder)
    task = load_task(folder)
    assert isinstance(task, TokenClassification)
    rows = [task.parse(Row(folder, line, row)) for line, row in enumerate(make_rows(512, seed))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        batch = [rows[(step * 32 + index) % len(rows)] for index in range(32)]
        arrays = task.encode(batch)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        model(**inputs, labels=torch.from_numpy(task.targets(batch, arrays))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _save_tokenizer(folder: Path) -> int:
    words = sorted({word for text in sample_texts() for word in re.findall(r"[A-Za-z]+", text)})
    cased = sorted({*words, *(word.capitalize() for word in words)})
    letters = sorted({letter for word in cased for letter in word} | set("0123456789"))
    pieces = [*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *cased]
    unused = [f"unused{index}" for index in range(_NUM_UNUSED)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *unused]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
    ).save_pretrained(folder)
    return len(vocabulary)
