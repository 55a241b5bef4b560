"""`edgesmith run` on a language model: GGUF and onnxruntime-genai beside each other, judged against the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Project

MISSING = [name for name in ("gguf", "llama_cpp", "onnxruntime_genai") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
RECIPE = """\
version: 1
name: novel
task: text-generation
model: {base: base, adapter: adapter}
data:
  eval: held_out.txt
  calibration: {path: train.txt, num_samples: 4}
  prompts: prompts.jsonl
steps: [merge]
targets:
  phone: {format: gguf, quantize: {type: Q5_1}}
  small: {format: gguf, quantize: {bits_per_weight: 6.6}}
  box: {format: genai, quantize: {method: int8}}
measure: {window: 64, num_windows: 8, max_tokens: 6, length: 16, seconds: 1}
gates:
  perplexity: {max_ratio: 1.1}
  divergence: {max_mean_kld: 0.2}
  size: {min_reduction: 1.5}
"""
Released = Callable[[Path], Project]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded small Llama with an adapter, and a real text; never run."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from bench.language.windows import read_text
    from compress.adapter import record_base
    from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

    folder = tmp_path_factory.mktemp("language")
    (folder / "recipe.yaml").write_text(RECIPE)
    save_model(folder / "base", LlamaConfig(**TINY, tie_word_embeddings=True))
    save_tokenizer(folder / "base")
    torch.manual_seed(5)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "base"),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    record_base(folder / "adapter", folder / "base")
    book = Path(__file__).parents[2] / "examples" / "novel" / "moby-dick.txt.gz"
    import gzip

    text = gzip.decompress(book.read_bytes()).decode()
    (folder / "train.txt").write_text(text[:12_000])
    (folder / "held_out.txt").write_text(text[400_000:404_000])
    rows = [{"prompt": "Call me", "reference": " Ishmael."}, {"prompt": "The whale", "reference": " is white."}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_text(folder / "held_out.txt")
    return folder


@pytest.fixture
def language_project(prepared: Path, tmp_path: Path) -> Project:
    shutil.copytree(prepared, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def language_release(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose recipe has been run."""
    folder = tmp_path_factory.mktemp("release") / "project"
    shutil.copytree(prepared, folder)
    project = Project(folder)
    done = project.run_in_new_interpreter("--json")  # others' bytes are compared with its
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_all_targets_are_made_measured_and_judged(language_release: Project) -> None:
    done = language_release.run("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "PASS"
    assert all(step["cached"] for step in result["steps"])
    gates = {target["name"]: {gate["gate"] for gate in target["gates"]} for target in result["targets"]}
    expected = {"perplexity", "divergence", "size.min_reduction"}
    assert gates == {"phone": expected, "small": expected, "box": expected}
    out = language_release.out
    assert (out / "phone" / "model.gguf").is_file()
    assert (out / "box" / "genai_config.json").is_file()
    for name in ("phone", "small", "box"):
        evidence = {path.name for path in (out / "evidence" / name).iterdir()}
        assert {"verify", "language", "answers", "baseline-answers", "footprint", "bench", "merge"} <= evidence
        language = json.loads((out / "evidence" / name / "language" / "language.json").read_text())
        assert language["num_windows"] == 8
        assert 0 < language["kld"]["mean"]["value"] < 0.2
        assert (
            language["artifact_digest"]
            == json.loads(done.stdout)["targets"][["phone", "small", "box"].index(name)]["digest"]
        )
    page = (out / "report.html").read_text()
    assert "perplexity" in page.lower()
    mean = json.loads((out / "evidence" / "phone" / "language" / "language.json").read_text())["kld"]["mean"]["value"]
    assert f"{mean:.4f}"[:6] in page


def test_a_divergence_that_is_too_large_fails_with_exit_code_1(language_release: Project) -> None:
    gates = language_release.folder / "strict.yaml"
    gates.write_text("divergence: {max_mean_kld: 0.0000000001}\n")
    done = language_release.edgesmith("gate", "out/phone", "--gates", gates)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL" in done.stdout
    assert "nats" in done.stdout


def test_few_windows_are_inconclusive_not_a_pass(language_project: Project) -> None:
    done = language_project.run(
        "--set", "targets={phone: {format: gguf, quantize: {type: Q8_0}}}", "--set", "measure.num_windows=2"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "INCONCLUSIVE" in done.stdout


def test_an_answer_is_the_same_from_the_command_line_and_the_golden_check_passes(language_release: Project) -> None:
    for name in ("phone", "box"):
        texts = [
            json.loads(language_release.edgesmith("generate", f"out/{name}", "The whale", "--json").stdout)["text"]
            for _ in range(2)
        ]
        assert texts[0] == texts[1]
        check = json.loads(language_release.edgesmith("check", f"out/{name}", "--json").stdout)
        assert check["golden"]["passed"]


def test_an_altered_weight_is_refused_before_llama_cpp_sees_it(language_release: Project, tmp_path: Path) -> None:
    shutil.copytree(language_release.out / "phone", tmp_path / "phone")
    path = tmp_path / "phone" / "model.gguf"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    done = language_release.edgesmith("generate", tmp_path / "phone", "The whale")
    assert done.returncode == 4
    assert "was altered" in done.stderr


def test_steps_one_at_a_time_give_the_recipes_bytes(language_release: Project) -> None:
    """Export, importance matrix and quantize by hand; `-o` folders are artifacts like the recipe's."""
    merged = language_release.folder / "merged"
    done = language_release.edgesmith("merge", "--base", "base", "--adapter", "adapter", "-o", merged)
    assert done.returncode == 0, done.stderr
    done = language_release.edgesmith("export", merged, "--format", "gguf", "-o", "plain", "--data", "held_out.txt")
    assert done.returncode == 0, done.stderr
    assert "tokenizer equal" in done.stderr
    done = language_release.edgesmith("imatrix", merged, "--data", "train.txt", "--windows", "4", "-o", "i.gguf")
    assert done.returncode == 0, done.stderr
    done = language_release.edgesmith(
        "quantize", "plain", "--type", "Q5_1", "--imatrix", "i.gguf", "--data", "held_out.txt", "-o", "q5", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["language"]["kld"]["mean"]["value"] < 0.2
    ours = (language_release.folder / "q5" / "model.gguf").read_bytes()
    assert ours == (language_release.out / "phone" / "model.gguf").read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["targets.phone.quantize.type=Q4_K_N"], "did you mean Q4_K"),
        (["targets={phone: {format: gguf, quantize: {type: IQ2_XXS, imatrix: false}}}"], "needs an importance matrix"),
        (["gates={accuracy: {metric: rouge_l, min: 0.1}}", "data.prompts=null"], "data.prompts"),
        (["measure.window=600"], "at most 512 tokens"),
        (["measure.window=63"], "measure.window"),
        (["gates={speed: {min_speedup: 2}}"], "speed"),
        (["data.calibration=held_out.txt"], "held-out"),
        (["targets.phone.format=onnx"], "targets.phone"),
        (["data.eval=recipe.yaml"], "recipe.yaml"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(language_project: Project, settings: list[str], said: str) -> None:
    given = [part for one in settings for part in ("--set", one)]
    done = language_project.run(*given)
    assert done.returncode in (2, 4), done.stdout + done.stderr
    assert said.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not list(language_project.store.glob("entries/*"))


def test_what_stops_the_timing_process_is_said_by_the_command(language_release: Project) -> None:
    done = language_release.edgesmith("bench", "out/phone", "--length", "400", "--max-tokens", "400")
    assert done.returncode in (2, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert "512" in done.stderr or "fewer than" in done.stderr, done.stderr


def test_a_block_size_without_blocks_is_refused(language_release: Project) -> None:
    done = language_release.edgesmith("export", "base", "--format", "genai", "--block-size", "64", "-o", "nowhere")
    assert done.returncode == 2
    assert "--block-size is for int8 and int4" in done.stderr
    assert not (language_release.folder / "nowhere").exists()


def test_a_smaller_language_model_is_held_against_the_whole_one_with_its_vocabulary(language_project: Project) -> None:
    project = language_project
    recipe = yaml.safe_load(project.recipe.read_text())
    training = {"epochs": 0.5, "max_length": 32, "batch_size": 4}
    recipe |= {
        "steps": ["merge", "trim-vocabulary", {"prune": {"num_layers": 1}}, {"distill": {"train": training}}],
        "targets": {"phone": {"format": "gguf", "quantize": {"type": "Q8_0"}}},
        "gates": {"size": {"min_reduction": 1.5}},
    }
    recipe["data"] |= {"train": "train.txt"}
    del recipe["data"]["prompts"]
    project.recipe.write_text(yaml.safe_dump(recipe))
    done = project.run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {step["name"]: step for step in json.loads((project.out / "release.json").read_bytes())["steps"]}
    assert list(steps) == ["merge", "trim-vocabulary", "prune", "distill"]
    language = json.loads((project.out / "evidence" / "phone" / "language" / "language.json").read_bytes())
    assert language["reference_artifact"] == steps["trim-vocabulary"]["digest"]
    assert language["kld"]["mean"]["value"] > 0, "a model without half of its layers is another model"
