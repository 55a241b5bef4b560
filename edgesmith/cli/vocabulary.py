"""The command that trims a vocabulary."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesmith.cli.options import Columns, Json, Out, columns_of

if TYPE_CHECKING:
    from compress.vocabulary.trim import TrimResult

__all__ = ["trim_vocabulary_command"]


def trim_vocabulary_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Hugging Face folder with tokenizer.json.")],
    corpus: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Rows as the model's task reads them; for language models a text file, or rows with a column `text`.",
        ),
    ],
    out: Out,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=64, help="Keep at most so many: rarer tokens of the corpus are written with shorter ones."),
    ] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Leave out tokens that the corpus has less often, too.")] = 1,
    multiple_of: Annotated[
        int, typer.Option(min=1, max=1024, help="Fill the number of tokens up to a multiple of this.")
    ] = 8,
    columns: Columns = None,
    json: Json = False,
) -> None:
    """Keep only the tokens that a corpus uses, and prove the model equal on it."""
    from edgesmith import console
    from edgesmith.api.vocabulary import trim_vocabulary

    artifact, result = trim_vocabulary(
        checkpoint,
        corpus=corpus,
        out=out,
        max_tokens=max_tokens,
        min_count=min_count,
        multiple_of=multiple_of,
        columns=columns_of(columns, corpus),
        progress=console.ConsoleProgress(),
    )
    summary = {"path": str(artifact.path), "digest": artifact.digest, "kind": artifact.kind}
    if json:
        facts = {key: value for key, value in asdict(result).items() if key != "path"}
        console.print_json({**summary, "model_bytes": artifact.model_bytes, "vocabulary": facts})
        return
    console.print_facts(summary)
    _show(result)


def _show(result: TrimResult) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    def row(name: str, before: int, after: int, write: Any = "{:,}".format) -> list[str]:
        return [name, write(before), write(after), f"{after / before:.1%}" if before else "—"]

    corpus, other = result.corpus, result.other_text
    console.print_table(
        ["", "before", "after", "left"],
        [
            row("tokens", result.num_tokens_before, result.num_tokens_after),
            row("parameters", result.num_parameters_before, result.num_parameters_after),
            row("weights", result.weights_bytes_before, result.weights_bytes_after, format_bytes),
            row("tokenizer.json", result.tokenizer_bytes_before, result.tokenizer_bytes_after, format_bytes),
            row("corpus, in tokens", corpus.num_tokens_before, corpus.num_tokens_after),
            row("other text, in tokens", other.num_tokens_before, other.num_tokens_after),
        ],
    )
    facts = {
        "tokens kept": ", ".join(f"{count:,} {reason}" for reason, count in result.reasons.items()),
        "corpus tokens changed": f"{corpus.num_gone:,} ({corpus.share_changed:.2%})",
        "largest output difference": f"{result.model.max_abs_diff:.3g} of {result.model.max_abs_output:.3g}, allowed "
        f"{result.model.tolerance:.2g}, on {result.model.num_tokens:,} tokens",
    }
    if (found := result.model.perplexity) is not None:
        facts["perplexity, kept tokens"] = f"{found.before_on_kept:.6g} → {found.after:.6g}"
        facts["perplexity, all tokens"] = (
            f"{found.before:.6g} before; {1 - found.kept_probability:.2%} of that probability went to tokens now gone"
        )
    console.print_facts(facts)
