"""Train a small ResNet on Fashion-MNIST, to the same bytes every time.

Writes `work/model`: a Hugging Face folder with the classes' names and the image processor's settings, as a team
that trains would have it. 0.7 M parameters, 12 M multiply-adds a picture, ten epochs of one-cycle SGD.

Run `python examples/fashion/prepare.py` first, then `python examples/fashion/train.py`. It is skipped when neither
its inputs nor its outputs have changed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prepare import FASHION, HERE, LABELS, read_split
from stamp import is_done, sha256_file, write_stamp

if TYPE_CHECKING:
    import torch
    from transformers import ResNetForImageClassification

WORK = HERE / "work"
SEED = 20
NUM_THREADS = 2  # fixed: sums run in another order on another number of threads
EDGE = 40  # pixels; the stem of a ResNet keeps every fourth, and 7 would be too few
MAX_SHIFT = 3  # pixels, of EDGE
MEAN, STD = 0.286, 0.353  # of the training pictures, on the scale from 0 to 1
NUM_EPOCHS = 10
BATCH_SIZE = 128
PEAK_RATE = 0.1
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.05


def resized(pixels_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize pictures as the image processor does, to [num, EDGE, EDGE]."""
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(one).resize((EDGE, EDGE), bilinear)) for one in pixels_NHW])


def prepared(pixels_NHW: torch.Tensor) -> torch.Tensor:
    """What the model takes: float32 of shape [num, 1, EDGE, EDGE], normalized, channels innermost in memory."""
    import torch

    values = pixels_NHW.to(torch.float32).div(255).sub(MEAN).div(STD)
    return values.unsqueeze(1).contiguous(memory_format=torch.channels_last)


def augmented(pixels_NHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift every picture by up to MAX_SHIFT pixels each way, and mirror half of them."""
    import torch

    num = len(pixels_NHW)
    padded = torch.nn.functional.pad(pixels_NHW, (MAX_SHIFT,) * 4)
    top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2, num, 1), generator=generator)
    line = torch.arange(EDGE)
    columns = torch.where(torch.rand(num, 1, generator=generator) < 0.5, line.flip(0), line) + left
    return padded[torch.arange(num)[:, None, None], (top + line)[:, :, None], columns[:, None, :]]


def new_model() -> ResNetForImageClassification:
    """A ResNet of three stages of two basic blocks, fresh from the seed."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(SEED)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="single_label_classification",
    )
    return ResNetForImageClassification(config)


def train_(model: ResNetForImageClassification, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """Train in place: SGD with Nesterov's momentum, the learning rate up and down once.

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    2018.
    """
    import torch

    # Norms and biases are not drawn towards zero: they are few and set scales, not functions.
    groups = [
        {"params": [one for one in model.parameters() if one.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in model.parameters() if one.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=PEAK_RATE, momentum=0.9, nesterov=True)
    num_updates = NUM_EPOCHS * (len(labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=num_updates, pct_start=0.25)
    objective = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    generator = torch.Generator().manual_seed(SEED)
    for epoch in range(NUM_EPOCHS):
        model.train()
        started, total_loss, num_right = time.process_time(), 0.0, 0
        batches = torch.randperm(len(labels), generator=generator).split(BATCH_SIZE)
        batches = [rows for rows in batches if len(rows) == BATCH_SIZE]
        for rows in batches:
            logits = model(prepared(augmented(pixels[rows], generator))).logits
            loss = objective(logits, labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total_loss += loss.item()
            num_right += int((logits.argmax(1) == labels[rows]).sum())
        print(
            f"epoch {epoch + 1:2}/{NUM_EPOCHS}: mean loss {total_loss / len(batches):.4f}, "
            f"{num_right / len(batches) / BATCH_SIZE:.2%} of the shifted pictures right, "
            f"{time.process_time() - started:.0f} s of processor time",
            flush=True,
        )


def accuracy(model: ResNetForImageClassification, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of pictures whose likeliest class is the right one."""
    import torch

    model.eval()
    with torch.inference_mode():
        found = [model(prepared(chunk)).logits.argmax(1) for chunk in pixels.split(500)]
    return float((torch.cat(found) == labels).float().mean())


def save_model(model: ResNetForImageClassification, folder: Path) -> None:
    """Save model and image processor, with nothing that differs from run to run."""
    import torch
    from transformers import ViTImageProcessorPil

    shutil.rmtree(folder, ignore_errors=True)
    model.to(memory_format=torch.contiguous_format)
    model.save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": EDGE, "width": EDGE}, image_mean=[MEAN], image_std=[STD])
    processor.save_pretrained(folder)


def train() -> float:
    """Write `work/model`; return its accuracy on the 10,000 test pictures."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Read when torch is loaded: waiting threads sleep. On a busy machine spinning ones treble the CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    (pixels, labels), (test_pixels, test_labels) = read_split("train"), read_split("test")
    model = new_model().to(memory_format=torch.channels_last)
    num_parameters = sum(one.numel() for one in model.parameters())
    print(f"{len(labels):,} pictures, {len(LABELS)} classes; {num_parameters:,} parameters", flush=True)
    train_(model, torch.from_numpy(resized(pixels)), torch.from_numpy(labels))
    found = accuracy(model, torch.from_numpy(resized(test_pixels)), torch.from_numpy(test_labels))
    save_model(model, WORK / "model")
    return found


def main() -> None:
    """Train, unless what a former run wrote is still there and still right."""
    stamp, report = WORK / "trained.json", WORK / "accuracy.json"
    inputs = {name: version(name) for name in ("torch", "transformers", "pillow")}
    inputs |= dict(FASHION.sha256) | {"script": sha256_file(Path(__file__))}
    if not is_done(stamp, inputs):
        stamp.unlink(missing_ok=True)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps({"accuracy": round(train(), 4)}) + "\n", encoding="utf-8")
        write_stamp(stamp, inputs, [report, *(path for path in (WORK / "model").iterdir() if path.is_file())])
    print(f"work/model: accuracy {json.loads(report.read_text())['accuracy']:.2%} on the 10,000 test pictures")


if __name__ == "__main__":
    main()
