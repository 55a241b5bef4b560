"""Build the models that `measure_gguf.py` compares, each once: whatever is in the work folder is not built again."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from bench.language.windows import Windows, cut_windows
from compress.checkpoint import open_checkpoint
from compress.gguf.allocate import Allocator, Budget
from compress.gguf.collect_torch import collect_imatrix_torch
from compress.gguf.imatrix import read_imatrix, write_imatrix
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize import GgufQuantConfig, GgufQuantizer
from compress.gguf.sensitivity import Sensitivity, measure_sensitivity
from compress.quiet import quiet_libraries
from edgesmith.artifact import Artifact, open_artifact, read_artifact, write_artifact
from edgesmith.files import sha256_file
from export.genai.to_genai import to_genai
from export.gguf.families import family_of
from export.gguf.model_config import load_config
from export.gguf.tensor_names import tensor_names
from export.gguf.tensor_plan import plan_tensors
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_file import read_gguf

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES / "kit"))

FLOATS = ("f32", "f16", "bf16")
PRESETS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_S")
WEIGHTED = ("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_S")
"""Presets that an importance matrix must make better."""
ALLOCATED = ("Q5_K_M", "Q4_K_M", "Q3_K_M")
"""Presets whose sizes are given to the allocation of bits."""
GENAI = ("int8", "int4")
IMATRIX_WINDOWS, IMATRIX_LENGTH = 64, 512
FISHER_WINDOWS, FISHER_LENGTH = 16, 256
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Built:
    """One model to be compared."""

    name: str
    artifact: Artifact
    preset: str
    """What it is a form of: `Q4_K_M` for the preset with and without importance matrix, and for chosen bits."""
    kind: str
    """`float`, `plain`, `imatrix`, `chosen` or `genai`."""
    bits_per_weight: float | None


def read_book() -> str:
    """Moby-Dick, as the example beside this folder carries it."""
    return gzip.decompress((EXAMPLES / "novel" / "moby-dick.txt.gz").read_bytes()).decode()


def default_checkpoint() -> Path:
    """SmolLM2-135M-Instruct in fp32."""
    from smollm2 import smollm2_folder

    folder: Path = smollm2_folder()
    return folder


def checkpoint_key(checkpoint: Path) -> str:
    """What is built of a checkpoint lies below this: a hash of its files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()[:12]


def take_off_grid(checkpoint: Path, out_folder: Path, *, seed: int = 0) -> Path:
    """Copy a checkpoint whose weights come from a Q4_1 file, moving each by up to half a step of its block.

    SmolLM2's package holds 4-bit weights: in fp32 they still lie on that grid, and a type that has the same grid
    keeps them without loss, which says nothing about other models. The noise is as large as what rounding took.

    Args:
        checkpoint: Hugging Face folder with float32 weights.
        out_folder: Not made again if it is there.
        seed: Of the noise.
    """
    if (out_folder / "config.json").is_file():
        return out_folder
    random = np.random.default_rng(seed)
    out_folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights = load_file(path)
        for name, weight in sorted(weights.items()):
            if weight.ndim == 2 and weight.shape[1] % 32 == 0:
                blocks = weight.reshape(-1, 32)
                if "embed" in name:  # in the package of 8 bits
                    steps = np.abs(blocks).max(axis=1, keepdims=True) / 127
                else:
                    steps = (blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)) / 15
                noise = random.uniform(-0.5, 0.5, blocks.shape).astype(np.float32)
                weights[name] = (blocks + noise * steps).reshape(weight.shape)
        save_file(weights, out_folder / path.name, metadata={"format": "pt"})
    for path in sorted(checkpoint.glob("*.json*"), key=lambda path: path.name == "config.json"):  # which comes last
        shutil.copy(path, out_folder)
    for path in checkpoint.glob("*.jinja"):
        shutil.copy(path, out_folder)
    return out_folder


class Workshop:
    """Builds into one folder.

    Args:
        checkpoint: Hugging Face folder.
        text: Its last fifth is held out; the rest is for importance matrix and sensitivities.
        work: What is built lies here, and is taken from here.
        threads: For everything.
    """

    def __init__(self, checkpoint: Path, text: str, work: Path, *, threads: int) -> None:
        self.checkpoint, self.work, self.threads = checkpoint, work, threads
        border = text.index("\n\n", int((1 - HELD_OUT_SHARE) * len(text)))
        self.calibration, self.held_out = text[:border], text[border:].strip()
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def num_values(self) -> int:
        """Weights of the model."""
        return sum(_num_values(one.shape) for one in read_gguf(self.float_file("f32")).tensors.values())

    def float_file(self, dtype: str) -> Path:
        """The converted checkpoint."""
        return self._made(f"{dtype}.gguf", lambda path: to_gguf(self.checkpoint, path, dtype=dtype))

    def windows(self, length: int, count: int, *, is_held_out: bool) -> Windows:
        """Windows spread over the calibration text or the held-out one."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
        tokens = tokenizer.encode(self.held_out if is_held_out else self.calibration).ids
        return cut_windows(tokens, length, self._bos(tokenizer), max_windows=count)

    def _bos(self, tokenizer: object) -> int | None:
        """What the tokenizer begins every text with."""
        bare = tokenizer.encode("a", add_special_tokens=False).ids  # type: ignore[attr-defined]
        whole = tokenizer.encode("a").ids  # type: ignore[attr-defined]
        return whole[0] if len(whole) > len(bare) and whole[0] != bare[0] else None

    @cached_property
    def imatrix(self) -> Imatrix:
        """From the torch model, on calibration text."""

        def make(path: Path) -> None:
            cut = self.windows(IMATRIX_LENGTH, IMATRIX_WINDOWS, is_held_out=False)
            names = tensor_names(self.checkpoint)
            write_imatrix(path, collect_imatrix_torch(self.checkpoint, names, _inputs(cut), threads=self.threads))

        return read_imatrix(self._made("imatrix.gguf", make))

    @cached_property
    def allocator(self) -> Allocator:
        """Types by measured sensitivity, with the importance matrix."""

        def make(path: Path) -> None:
            measure_sensitivity(
                self.float_file("f32"), self._fisher(), imatrix=self.imatrix, threads=self.threads
            ).save(path)

        return Allocator(Sensitivity.load(self._made("sensitivity.json", make)))

    def _fisher(self) -> object:
        import torch
        import transformers

        from compress.gguf.fisher import collect_fisher

        torch.set_num_threads(self.threads)
        with quiet_libraries():
            model = transformers.AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32)
        config = load_config(self.checkpoint)
        planned, _ = plan_tensors(open_checkpoint(self.checkpoint), config, family_of(config), "f32")
        orders = {one.name: one.rows for one in planned if one.rows is not None}
        cut = self.windows(FISHER_LENGTH, FISHER_WINDOWS, is_held_out=False)
        return collect_fisher(model, tensor_names(self.checkpoint), _inputs(cut), row_orders=orders)

    def floats(self) -> Iterator[Built]:
        """The unquantized forms."""
        for dtype in FLOATS:
            yield self._gguf(dtype, self.float_file(dtype), dtype, "float")

    def presets(self, names: Sequence[str] = PRESETS, *, with_imatrix: bool) -> Iterator[Built]:
        """Presets of llama.cpp's quantizer."""
        for preset in names:
            is_weighted = with_imatrix and preset != "Q8_0"
            name = f"{preset} + imatrix" if is_weighted else preset
            path = self._quantized(f"{preset}{'-imatrix' if is_weighted else ''}", preset, {}, is_weighted)
            yield self._gguf(name, path, preset, "imatrix" if is_weighted else "plain")

    def allocations(self, presets: Sequence[str] = ALLOCATED) -> Iterator[Built]:
        """Chosen bits, in files no larger than those of presets with importance matrix."""
        for preset in presets:
            same_size = self._quantized(f"{preset}-imatrix", preset, {}, True)
            path = self.work / f"{preset}-chosen.gguf"
            if not path.is_file():
                chosen = self.allocator.allocate(Budget(max_mb=same_size.stat().st_size / 1e6))
                self._quantized(f"{preset}-chosen", chosen.file_type, chosen.tensor_types, True)
            yield self._gguf(f"chosen at {preset}'s size", path, preset, "chosen")

    def genai(self) -> Iterator[Built]:
        """The same checkpoint for ONNX Runtime."""
        for precision in GENAI:
            folder = self.work / f"genai-{precision}"
            if not (folder / "manifest.json").is_file():
                to_genai(self.checkpoint, folder, precision=precision, threads=self.threads)
                write_artifact(folder, kind="genai", step="export", precision=precision)
            artifact = read_artifact(folder)
            bits = 8 * artifact.model_bytes / self.num_values
            yield Built(
                name=f"genai {precision}", artifact=artifact, preset=precision, kind="genai", bits_per_weight=bits
            )

    def _quantized(self, stem: str, preset: str, types: dict[str, str], is_weighted: bool) -> Path:
        def make(path: Path) -> None:
            with GgufQuantizer() as quantizer:
                quantizer.quantize(
                    self.float_file("f32"),
                    path,
                    GgufQuantConfig(type=preset, tensor_types=types),
                    imatrix=self.imatrix if is_weighted else None,
                    threads=self.threads,
                )

        return self._made(f"{stem}.gguf", make)

    def _gguf(self, name: str, path: Path, preset: str, kind: str) -> Built:
        tensors = read_gguf(path).tensors.values()
        values = sum(_num_values(one.shape) for one in tensors)
        bits = 8 * sum(one.size_bytes for one in tensors) / values
        return Built(name=name, artifact=open_artifact(path), preset=preset, kind=kind, bits_per_weight=bits)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file of a name, made if it is missing; the makers write it whole or not at all."""
        path = self.work / name
        if not path.is_file():
            sys.stderr.write(f"making {name}\n")
            make(path)
        return path


def _inputs(windows: Windows) -> list[list[int]]:
    return [windows.input_of(index) for index in range(windows.num_windows)]


def _num_values(shape: tuple[int, ...]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count
