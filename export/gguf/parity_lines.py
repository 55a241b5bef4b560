"""Lines on which tokenizers tend to differ: white space, digits, scripts, emoji, control and special tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

__all__ = ["generate_lines"]

_WORDS = """
the of and to in is that for it was on are as with his they at be this from have or had by word but what some
we can out other were all there when up use your how said an each she which do their time if will way about
many then them would write like so these her long make thing see him two has look more day could go come did
number sound no most people my over know water than call first who may down side been now find any new work
part take get place made live where after back little only round man year came show every good give our under
name very through just form sentence great think say help low line differ turn cause much mean before move
right boy old too same tell does set three want air well also play small end put home read hand port large
spell add even land here must big high such follow act why ask men change went light kind off need house
Über naïve façade Ærøskøbing crème brûlée señor garçon smörgåsbord Łódź Dvořák Zürich coöperate élève
I'm you're he'll she'd it's we've don't DON'T They'RE o'clock e-mail U.S.A. Dr. Mr. vs. etc.
""".split()  # noqa: SIM905
_CODE = (
    "def f(x):\n    return x ** 2", "for (int i = 0; i < n; ++i) {", "\tif err != nil {\n\t\treturn err\n\t}",
    "SELECT * FROM t WHERE a <> 'b' -- c", "#include <vector>", "x = {\"a\": [1, 2.5e-3, None]}", "a&&b||!c",
    "<div class=\"x\">&nbsp;</div>", "fn main() -> Result<(), Box<dyn Error>> {", "let y = x?.z ?? 0;",
    "::std::cout << \"\\n\";", "rm -rf /tmp/*.log 2>&1 | tee out", "$HOME/${USER:-nobody}", "print(f'{a!r:>10}')",
    "@property", "lambda x: x[::-1]", "0xDEADBEEF + 0b1010", "a_b_c aBcD ABC_DEF", "%s\\t%d\\r\\n", "/* comment */",
)  # fmt: skip
_SPACES = (" ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\r\n", " \n", "\n ", " \t ", "\u00a0", "\u2003",
           "\u3000", "\v", "\f")  # fmt: skip
_EMOJI = (
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "🤷‍♀️", "✨", "☕", "1️⃣", "🧑‍💻", "🫠", "→", "★", "™", "€", "½", "²",
)  # fmt: skip
_PUNCTUATION: Sequence[str] = (
    "...",
    "--",
    "—",
    "…",
    "«",
    "»",
    "“",
    "”",
    "„",
    "¿",
    "¡",
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
)
_CONTROLS = tuple(
    chr(code) for code in (*range(1, 9), 14, 27, 31, 127, 0x85, 0xAD, 0x200B, 0x200D, 0x200E, 0x2028, 0xFEFF)
)
# First and last character of scripts' plain letters.
_SCRIPTS = (
    ("一", "鿋"), ("ا", "ي"), ("٠", "٩"), ("а", "я"), ("А", "Я"), ("α", "ω"), ("א", "ת"), ("अ", "ह"), ("ก", "ฮ"),
    ("가", "힣"), ("ぁ", "ん"), ("ァ", "ヺ"), ("ა", "ჰ"), ("ա", "ֆ"), ("ক", "ন"), ("அ", "ஊ"), ("à", "ö"), ("０", "９"),
)  # fmt: skip


def generate_lines(count: int, *, special_tokens: Sequence[str], seed: int = 0) -> Iterator[str]:
    """Make lines of all kinds, the same for the same arguments.

    Args:
        count: How many; lines with special tokens come on top.
        special_tokens: Each stands in lines of its own: alone, inside a text, twice.
        seed: Of the random choices.

    Yields:
        Lines without their end; some hold line breaks.
    """
    rng = random.Random(seed)  # noqa: S311 - test data, not secrets
    kinds: tuple[Callable[[random.Random], str], ...] = (
        _prose, _prose, _code, _digits, _spaces, _emoji, _script, _script, _controls, _mixed,
    )  # fmt: skip
    for index in range(count):
        yield kinds[index % len(kinds)](rng)
    for token in special_tokens:
        yield token
        yield f"{_prose(rng)}{token}{_prose(rng)}"
        yield f"{token}{token}\n{_mixed(rng)}"


def _some(rng: random.Random, items: Sequence[str], most: int) -> list[str]:
    return rng.choices(items, k=rng.randint(1, most))


def _prose(rng: random.Random) -> str:
    words = _some(rng, _WORDS, 20)
    return " ".join(word.capitalize() if rng.random() < 0.15 else word for word in words) + rng.choice(_PUNCTUATION)


def _code(rng: random.Random) -> str:
    return "\n".join(" " * (4 * rng.randint(0, 3)) + line for line in _some(rng, _CODE, 4))


def _digits(rng: random.Random) -> str:
    parts = (str(rng.randint(0, 10 ** rng.randint(1, 14))) for _ in range(rng.randint(1, 8)))
    return "".join(part + rng.choice((" ", ",", ".", "-", "", "%", "/", ":")) for part in parts)


def _spaces(rng: random.Random) -> str:
    return "".join(
        rng.choice(_WORDS if rng.random() < 0.5 else _SPACES) + rng.choice(_SPACES) for _ in range(rng.randint(1, 12))
    )


def _emoji(rng: random.Random) -> str:
    return rng.choice(("", " ")).join(rng.choice(_EMOJI if rng.random() < 0.6 else _WORDS) for _ in range(8))


def _script(rng: random.Random) -> str:
    first, last = rng.choice(_SCRIPTS)
    letters = [chr(rng.randint(ord(first), ord(last))) for _ in range(rng.randint(1, 30))]
    return "".join(letter + rng.choice(("", "", "", " ", "，", "。", "1")) for letter in letters)


def _controls(rng: random.Random) -> str:
    return "".join(rng.choice(_CONTROLS if rng.random() < 0.3 else _WORDS) for _ in range(10))


def _marks(rng: random.Random) -> str:
    return rng.choice(_PUNCTUATION) * rng.randint(1, 6)


def _mixed(rng: random.Random) -> str:
    parts: tuple[Callable[[random.Random], str], ...] = (_prose, _digits, _spaces, _emoji, _script, _marks)
    return "".join(rng.choice(parts)(rng)[: rng.randint(1, 30)] for _ in range(rng.randint(2, 5)))
