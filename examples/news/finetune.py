"""Fine-tune MiniLM on the news texts with LoRA, to the same bytes every time.

Writes two folders below `work/`, as a team that fine-tunes would have them:

* `base/`: MiniLM as a classifier of five named classes, its head fresh from a seed. An adapter does not
  carry labels, so they must be in the configuration of the base that it is trained on and merged into.
* `adapter/`: what PEFT saves: LoRA of rank 8 on every linear layer of the encoder, and the trained head.

Run `python examples/news/prepare.py` first, then `python examples/news/finetune.py`. It is skipped when
neither its inputs nor its outputs have changed.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prepare import DATA, HERE, MINILM, minilm_folder
from stamp import is_done, sha256_file, write_stamp

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

WORK = HERE / "work"
SEED = 20
NUM_THREADS = 2  # fixed: sums run in another order on another number of threads
MAX_TOKENS = 128  # what the model is served with; the base's tokenizer says so
TRAIN_TOKENS = 64  # an article's opening tells its class, at half the time
NUM_EPOCHS = 3
BATCH_SIZE = 16
LEARNING_RATE = 1e-3


def read_split(name: str) -> tuple[list[str], list[str]]:
    """Read the texts and the labels of `data/NAME.jsonl`."""
    with (DATA / f"{name}.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def write_base(folder: Path, labels: list[str]) -> None:
    """Write MiniLM as a sequence classifier whose configuration names the labels."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm_folder(),
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        dtype=torch.float32,
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)


def add_lora(base: Path) -> PeftModel:
    """Load the base and put LoRA of rank 8 on the encoder's linear layers; the head is trained whole."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        target_modules=["query", "value", "dense"],
        exclude_modules=r".*pooler.*",
        modules_to_save=["classifier"],
    )
    return get_peft_model(model, config)


def train_(model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], targets: list[int]) -> None:
    """Train in place: AdamW, the learning rate falling to zero in a straight line."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    num_steps = NUM_EPOCHS * -(-len(texts) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    order = torch.Generator().manual_seed(SEED)
    model.train()
    for epoch in range(NUM_EPOCHS):
        total_loss = 0.0
        for rows in torch.randperm(len(texts), generator=order).split(BATCH_SIZE):
            batch = tokenizer(
                [texts[row] for row in rows],
                truncation=True,
                max_length=TRAIN_TOKENS,
                padding=True,
                return_tensors="pt",
            )
            loss = model(**batch, labels=torch.tensor([targets[row] for row in rows])).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total_loss += loss.item() * len(rows)
        print(f"epoch {epoch + 1}/{NUM_EPOCHS}: mean loss {total_loss / len(texts):.4f}", flush=True)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter with nothing in it that differs from run to run or from folder to folder."""
    from compress.adapter import record_base

    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = os.path.relpath(WORK / "base", folder)
    for key in ("target_modules", "modules_to_save"):  # sets: PEFT writes them in the order of their hashes
        config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    record_base(folder, WORK / "base")  # so that merging it into another base is refused


def finetune() -> None:
    """Write `work/base` and `work/adapter`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Read when torch is loaded: waiting threads sleep. On a busy machine spinning ones treble the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    # PEFT 0.21 calls a property that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    texts, names = read_split("train")
    labels = sorted(set(names))
    write_base(WORK / "base", labels)
    model = add_lora(WORK / "base")
    trainable, total = model.get_nb_trainable_parameters()
    print(f"{len(texts)} texts, {len(labels)} classes; training {trainable:,} of {total:,} parameters", flush=True)
    train_(model, AutoTokenizer.from_pretrained(WORK / "base"), texts, [labels.index(name) for name in names])
    save_adapter(model, WORK / "adapter")


def main() -> None:
    """Fine-tune, unless what a former run wrote is still there and still right."""
    if not (DATA / "train.jsonl").is_file():
        sys.exit("examples/news/data/train.jsonl is missing\n  → run examples/news/prepare.py first")
    stamp = WORK / "finetuned.json"
    inputs = {name: version(name) for name in ("torch", "transformers", "peft")}
    inputs |= {"model": MINILM.sha256, "train": sha256_file(DATA / "train.jsonl")}
    inputs |= {"script": sha256_file(Path(__file__))}
    if is_done(stamp, inputs):
        print("fine-tuned already: work/base and work/adapter are up to date")
        return
    stamp.unlink(missing_ok=True)
    finetune()
    write_stamp(stamp, inputs, [path for path in WORK.glob("*/*") if path.is_file()])


if __name__ == "__main__":
    main()
