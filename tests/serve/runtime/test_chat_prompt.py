"""Conversations as an opened model reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgesmith.artifact import open_artifact
from export.gguf.to_gguf import to_gguf
from serve.runtime.chat_prompt import chat_prompt
from serve.runtime.gguf_engine import LlamaEngine

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_the_template_is_the_opened_models_and_no_file_is_opened_again(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    path = to_gguf(folder, tmp_path / "model.gguf", dtype="f32").path
    artifact, engine = open_artifact(path), LlamaEngine(path)
    path.unlink()
    text = chat_prompt(artifact, engine, [{"role": "user", "content": "Hi"}])
    engine.close()
    assert text.removeprefix("<|im_start|>") == "user: Hi<|im_end|>assistant: "
