"""Fine-tune SmolLM2-135M on the novel with LoRA, to the same bytes every time.

Writes `work/adapter`: what PEFT saves, LoRA of rank 8 on every linear layer of the decoder.

Run `python examples/novel/prepare.py` first, then `python examples/novel/finetune.py`. It is skipped when
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

from prepare import DATA, HERE
from smollm2 import SMOLLM2, smollm2_folder
from stamp import is_done, sha256_file, write_stamp

if TYPE_CHECKING:
    from peft import PeftModel

WORK = HERE / "work"
BASE = WORK / "base"
SEED = 20
NUM_THREADS = 2  # fixed: sums run in another order on another number of threads
NUM_STEPS = 30
BATCH_SIZE = 4
NUM_TOKENS = 64
LEARNING_RATE = 1e-3


def add_lora(base: Path) -> PeftModel:
    """Load the base and put LoRA of rank 8 on all linear layers but the head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))


def train_(model: PeftModel, tokens: list[int]) -> None:
    """Train in place on pieces of the text from places drawn by a seed."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=NUM_STEPS)
    text = torch.tensor(tokens)
    places = torch.Generator().manual_seed(SEED)
    model.train()
    for step in range(NUM_STEPS):
        starts = torch.randint(len(tokens) - NUM_TOKENS, (BATCH_SIZE,), generator=places).tolist()
        batch = torch.stack([text[start : start + NUM_TOKENS] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % 5 == 0:
            print(f"step {step + 1}/{NUM_STEPS}: loss {loss.item():.3f}", flush=True)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter with nothing in it that differs from run to run or from folder to folder."""
    from compress.adapter import record_base

    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = os.path.relpath(BASE, folder)
    config["target_modules"] = sorted(set(config["target_modules"]))  # a set: in the order of its hashes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    record_base(folder, BASE)  # so that merging it into another base is refused


def finetune() -> None:
    """Write `work/adapter`."""
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
    text = (DATA / "train.txt").read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(BASE)(text, verbose=False)["input_ids"]
    model = add_lora(BASE)
    trainable, total = model.get_nb_trainable_parameters()
    print(f"{len(tokens):,} tokens; training {trainable:,} of {total:,} parameters", flush=True)
    train_(model, tokens)
    save_adapter(model, WORK / "adapter")


def main() -> None:
    """Fine-tune, unless what a former run wrote is still there and still right."""
    if not (DATA / "train.txt").is_file():
        sys.exit("examples/novel/data/train.txt is missing\n  → run examples/novel/prepare.py first")
    WORK.mkdir(exist_ok=True)
    BASE.unlink(missing_ok=True)
    BASE.symlink_to(smollm2_folder())  # half a gigabyte that lies in the cache
    stamp = WORK / "finetuned.json"
    inputs = {name: version(name) for name in ("torch", "transformers", "peft")}
    inputs |= {"model": SMOLLM2.sha256, "train": sha256_file(DATA / "train.txt")}
    inputs |= {"script": sha256_file(Path(__file__))}
    if is_done(stamp, inputs):
        print("fine-tuned already: work/adapter is up to date")
        return
    stamp.unlink(missing_ok=True)
    finetune()
    write_stamp(stamp, inputs, [path for path in (WORK / "adapter").iterdir() if path.is_file()])


if __name__ == "__main__":
    main()
