from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from compress.vocabulary.prove_model import prove_model
from compress.vocabulary.select import Limits
from compress.vocabulary.trim import TrimResult, read_kept_ids, trim_vocabulary
from edgesmith.errors import CheckpointError, DataError, EdgesmithError, UnsupportedError, UsageError, VerificationError
from tests.compress.merge_models import quiet
from tests.compress.vocabulary.checkpoints import byte_level, corpus, llama, save_checkpoint, unigram, word_piece

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def trim(tmp_path: Path, **options: Any) -> TrimResult:
    return trim_vocabulary(tmp_path / "whole", tmp_path / "trimmed", corpus(), **options)


def _models() -> dict[str, tuple[Any, str, Any]]:
    padded = {"vocab_size": 768}
    positions = {"max_position_embeddings": 140}
    seq2seq = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, **positions}
    t5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    per_layer = {"vocab_size_per_layer_input": 600, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    gemma = {"head_dim": 8, "num_key_value_heads": 1, "laurel_rank": 4, "activation_sparsity_pattern": [0.0]}
    return {
        "tied": (byte_level, "LlamaForCausalLM", llama(768, tie_word_embeddings=True)),
        "untied": (byte_level, "LlamaForCausalLM", llama(768, tie_word_embeddings=False)),
        "bias of the decoder": (word_piece, "BertForMaskedLM", transformers.BertConfig(**padded, **TINY, **positions)),
        "classifier": (
            word_piece,
            "BertForSequenceClassification",
            transformers.BertConfig(**padded, **TINY, **positions, num_labels=3),
        ),
        "positions from the padding token on": (
            unigram,
            "RobertaModel",
            transformers.RobertaConfig(**padded, **TINY, **positions, pad_token_id=2),
        ),
        "bias of the logits": (
            unigram,
            "BartForConditionalGeneration",
            transformers.BartConfig(**padded, **seq2seq, **heads, decoder_start_token_id=1),
        ),
        "encoder and decoder": (
            unigram,
            "T5ForConditionalGeneration",
            transformers.T5Config(**padded, **t5, decoder_start_token_id=0),
        ),
        "embeddings of each layer": (
            byte_level,
            "Gemma3nForCausalLM",
            transformers.Gemma3nTextConfig(**padded, **TINY, **per_layer, **gemma, layer_types=["full_attention"]),
        ),
    }


MODELS = _models()


@pytest.mark.parametrize("kind", MODELS)
def test_model_computes_the_same(tmp_path: Path, kind: str) -> None:
    tokenizer, model_class, config = MODELS[kind]
    save_checkpoint(tmp_path / "whole", tokenizer(), model_class, config)
    result = trim(tmp_path)
    kept = torch.from_numpy(read_kept_ids(tmp_path / "trimmed"))
    ids = torch.tensor(Tokenizer.from_file(str(tmp_path / "trimmed" / "tokenizer.json")).encode(corpus()[3]).ids[:64])
    outputs = []
    for name, given in (("whole", kept[ids]), ("trimmed", ids)):
        with quiet(), torch.no_grad():
            model = getattr(transformers, model_class).from_pretrained(str(tmp_path / name)).eval()
            more = {"decoder_input_ids": given[None]} if config.is_encoder_decoder else {}
            outputs.append(model(input_ids=given[None], **more)[0])
    before, after = outputs
    if before.shape[-1] != after.shape[-1]:
        assert (before.shape[-1], after.shape[-1]) == (768, len(kept))
        before = before[..., kept]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    assert result.model.max_abs_diff <= 1e-6
    assert result.num_rows_before == 768
    assert result.num_rows_after == len(kept) < 701


def test_models_that_read_few_tokens_at_once_are_compared_on_as_few(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.RobertaConfig(vocab_size=768, max_position_embeddings=34, pad_token_id=1, **sizes)
    save_checkpoint(tmp_path / "whole", byte_level(), "RobertaForTokenClassification", config)
    result = trim(tmp_path)
    assert result.model.num_tokens == 8 * 32
    assert result.model.max_abs_diff <= 1e-6


def test_rows_are_taken_over_bit_by_bit_and_all_else_as_it_is(tmp_path: Path) -> None:
    tokenizer, model_class, config = MODELS["bias of the decoder"]
    save_checkpoint(tmp_path / "whole", tokenizer(), model_class, config)
    result = trim(tmp_path)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "trimmed"))
    kept = read_kept_ids(tmp_path / "trimmed")
    assert set(result.tensors) == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    for name, value in before.items():
        expected = value[kept] if name in result.tensors else value
        assert np.array_equal(after[name], expected)
        if name in result.tensors:
            assert result.tensors[name].bytes_after == expected.nbytes


def test_tables_of_integers_are_no_parameters(tmp_path: Path) -> None:
    tokenizer, model_class, config = MODELS["bias of the decoder"]
    save_checkpoint(tmp_path / "whole", tokenizer(), model_class, config)
    plain = trim(tmp_path)
    file = tmp_path / "whole" / "model.safetensors"
    positions = {"bert.embeddings.position_ids": np.arange(140)[np.newaxis]}  # as older versions saved
    save_file(load_file(file) | positions, file, metadata={"format": "pt"})
    result = trim_vocabulary(tmp_path / "whole", tmp_path / "again", corpus())
    assert result.num_parameters_before == plain.num_parameters_before
    assert result.num_parameters_after == plain.num_parameters_after


def test_every_token_id_moves_with_its_token(tmp_path: Path) -> None:
    tokenizer = byte_level()
    end, rare = tokenizer.token_to_id("<|end|>"), tokenizer.get_vocab_size() - 2
    save_checkpoint(tmp_path / "whole", tokenizer, config=llama(720, eos_token_id=end, pad_token_id=719))
    generation = {"eos_token_id": [end, rare], "suppress_tokens": [rare - 1, rare], "max_length": end}
    (tmp_path / "whole" / "generation_config.json").write_text(json.dumps(generation))
    settings = {"added_tokens_decoder": {str(end): {"content": "<|end|>"}}, "eos_token": "<|end|>"}
    (tmp_path / "whole" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "whole" / "added_tokens.json").write_text(json.dumps({"<|end|>": end}))
    trim(tmp_path)
    new = {old: index for index, old in enumerate(read_kept_ids(tmp_path / "trimmed").tolist())}
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "trimmed").glob("*.json")}
    assert read["config.json"]["eos_token_id"] == new[end]
    assert read["config.json"]["pad_token_id"] == new[719] == len(new) - 1  # no token of the tokenizer's
    assert read["config.json"]["vocab_size"] == len(new)
    assert read["generation_config.json"] == {
        "eos_token_id": [new[end], new[rare]],
        "suppress_tokens": [new[rare - 1], new[rare]] if rare - 1 in new else [new[rare]],
        "max_length": end,
    }
    assert read["tokenizer_config.json"]["added_tokens_decoder"] == {str(new[end]): {"content": "<|end|>"}}
    assert read["added_tokens.json"] == {"<|end|>": new[end]}


def test_an_id_that_is_the_classes_default_moves_too(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=50304, n_embd=8, n_layer=1, n_head=2, n_positions=256)
    save_checkpoint(tmp_path / "whole", byte_level(), "GPT2LMHeadModel", config)
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert stored.pop("eos_token_id") == 50256
    (tmp_path / "whole" / "config.json").write_text(json.dumps(stored))
    result = trim(tmp_path)
    assert transformers.GPT2Config.from_pretrained(tmp_path / "trimmed").eos_token_id == result.num_rows_after - 1


def test_all_files_of_a_tokenizer_say_the_same(tmp_path: Path) -> None:
    tokenizer = byte_level()
    save_checkpoint(tmp_path / "whole", tokenizer)
    tokenizer.model.save(str(tmp_path / "whole"))
    (tmp_path / "whole" / "tokenizer.model").write_bytes(b"sentencepiece")
    result = trim(tmp_path)
    trimmed = json.loads((tmp_path / "trimmed" / "tokenizer.json").read_text())["model"]
    assert json.loads((tmp_path / "trimmed" / "vocab.json").read_text()) == trimmed["vocab"]
    lines = (tmp_path / "trimmed" / "merges.txt").read_text().splitlines()[1:]
    assert [line.split(" ") for line in lines] == trimmed["merges"]
    assert not (tmp_path / "trimmed" / "tokenizer.model").exists()
    assert result.notes


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", word_piece(), "BertModel", transformers.BertConfig(vocab_size=768, **TINY))
    for name in ("one", "two"):
        trim_vocabulary(tmp_path / "whole", tmp_path / name, corpus())
    for path in sorted((tmp_path / "one").iterdir()):
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_shards_are_trimmed_as_one_file_is(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    trim(tmp_path)
    with quiet():
        model = transformers.LlamaForCausalLM.from_pretrained(str(tmp_path / "whole"))
        model.save_pretrained(str(tmp_path / "shards"), max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "shards" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    trim_vocabulary(tmp_path / "shards", tmp_path / "joined", corpus())
    joined, single = (load_file(tmp_path / name / "model.safetensors") for name in ("joined", "trimmed"))
    assert all(np.array_equal(joined[name], single[name]) for name in single)


def test_perplexity_is_the_same_among_the_tokens_that_stay_and_lower_than_over_all(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    found = trim(tmp_path).model.perplexity
    assert found is not None
    assert found.after == pytest.approx(found.before_on_kept, rel=1e-6)
    assert found.after < found.before
    assert found.before * found.kept_probability == pytest.approx(found.after, rel=1e-6)


def test_a_chat_templates_own_words_keep_their_tokens(tmp_path: Path) -> None:
    from compress.vocabulary.chat import chat_texts

    save_checkpoint(tmp_path / "whole", byte_level())
    template = "{% for message in messages %}magazine {{ message.role }}: {{ message.content }}{% endfor %}"
    (tmp_path / "whole" / "chat_template.jinja").write_text(template)
    texts = chat_texts(tmp_path / "whole")
    assert "magazine user: a" in texts
    trim(tmp_path, more_texts=texts, limits=Limits(min_count=2))
    kept = read_kept_ids(tmp_path / "trimmed")
    before, after = (
        Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).encode(texts[0]).ids
        for name in ("whole", "trimmed")
    )
    assert kept[after].tolist() == before


def test_weights_that_were_mixed_up_are_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    trim(tmp_path)
    kept = read_kept_ids(tmp_path / "trimmed")
    wrong = np.concatenate([kept[1:], kept[:1]])
    with pytest.raises(VerificationError, match="differ by"):
        prove_model(
            tmp_path / "whole", tmp_path / "trimmed", transformers.LlamaForCausalLM, wrong, np.arange(200) % len(kept)
        )


def _spoil_word_level(folder: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))


def _spoil_json(folder: Path, name: str, change: Any) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def _spoil_dropout(folder: Path) -> None:
    _spoil_json(folder, "tokenizer.json", lambda content: content["model"].update(dropout=0.1))


def _spoil_twins(folder: Path) -> None:
    _spoil_json(folder, "tokenizer.json", lambda content: content["model"]["vocab"].update(twin=5))


def _spoil_highest(folder: Path) -> None:
    _spoil_json(folder, "tokenizer.json", lambda content: content["model"]["vocab"].update(beyond=5000))


def _spoil_quantized(folder: Path) -> None:
    _spoil_json(folder, "config.json", lambda content: content.update(quantization_config={"load_in_4bit": True}))


def _spoil_missing(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_spoil_word_level, UnsupportedError, "kind WordLevel; BPE, WordPiece, Unigram"),
        (_spoil_dropout, UnsupportedError, "dropout 0.1"),
        (_spoil_twins, CheckpointError, "both have the id 5"),
        (_spoil_highest, CheckpointError, "highest token id is 5000 .*701 rows"),
        (_spoil_quantized, UnsupportedError, "bitsandbytes 4-bit"),
        (_spoil_missing, CheckpointError, "no tokenizer.json"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(
    tmp_path: Path, spoil: Any, error: type[EdgesmithError], message: str
) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    spoil(tmp_path / "whole")
    with pytest.raises(error, match=message) as caught:
        trim(tmp_path)
    assert caught.value.mend
    assert not (tmp_path / "trimmed").exists()


def test_too_little_text_or_too_low_a_limit_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    with pytest.raises(DataError, match=r"the corpus has \d tokens; 256"):
        trim_vocabulary(tmp_path / "whole", tmp_path / "trimmed", ["three words only"])
    with pytest.raises(UsageError, match="max_tokens is 100, but 257 tokens must stay: 2 special, 255 characters"):
        trim(tmp_path, limits=Limits(max_tokens=100))
    (tmp_path / "trimmed").mkdir()
    (tmp_path / "trimmed" / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        trim(tmp_path)


def test_tokens_of_pictures_numbered_after_those_of_text_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole", byte_level())
    _spoil_json(tmp_path / "whole", "config.json", lambda content: content.update(vocab_offset=700))
    with pytest.raises(UnsupportedError, match="vocab_offset numbers tokens of pictures"):
        trim(tmp_path)
