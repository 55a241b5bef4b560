"""Lines that tokenizers stumble over: at least 2,000 of them, the same on every run."""

from __future__ import annotations

import json.decoder
import random
import textwrap
from pathlib import Path

from edgesmith.tasks import sample_texts

SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>", "<unk>", "<|im_start|>")

CHINESE = "模型在手机上运行得更快，但是精度不能下降。今天北京的天气很好，我们去公园散步吧！量化之后只有四分之一大。"
ARABIC = "النموذج الصغير يعمل على الهاتف بسرعة أكبر. ذهبت إلى السوق صباح اليوم واشتريت خبزًا وتمرًا، ثم عدتُ إلى البيت."
HINDI = "छोटा मॉडल फ़ोन पर तेज़ चलता है। आज मौसम बहुत अच्छा है।"
THAI = "โมเดลขนาดเล็กทำงานบนโทรศัพท์ได้เร็วขึ้น"
GERMAN = "Größe, Übermut und Straßenbahn: das Maß aller Dinge – „schön“, nicht wahr? İstanbul, Łódź, naïve café, Å"
EMOJI = "🙂👍🏽👨‍👩‍👧‍👦🇩🇪🏴󠁧󠁢󠁳󠁣󠁴󠁿❤️☕️🧑🏿‍🚀#️⃣🫠"


def _windows(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), max(1, size // 2))]


def lines() -> list[str]:
    """All lines."""
    rng = random.Random(20)
    prose = list(sample_texts())
    code = [line for line in Path(json.decoder.__file__).read_text().splitlines() if line.strip()]
    code += [line for line in Path(textwrap.__file__).read_text().splitlines() if line.strip()]
    digits = [f"{rng.randrange(10**size)}" for size in range(1, 40)]
    digits += ["3.14159", "1,000,000.00 €", "0x7fFF", "١٢٣٤٥", "½ ¾ ⅔", "1e-12", "12:34:56", "2024-02-29", "IX ⅸ"]
    space = ["", " ", "  ", "\t", "\n", "a  b", " a ", "a\tb\nc\r\nd", "\u00a0x\u2003y\u200bz", "\u3000全角", "end \n"]
    space += [" " * size + "x" + "\n" * size for size in range(1, 20)]
    foreign = [
        part for text in (CHINESE, ARABIC, HINDI, THAI, GERMAN) for size in (2, 7) for part in _windows(text, size)
    ]
    foreign += [part for size in (1, 3) for part in _windows(EMOJI, size)]
    control = [f"a{chr(code_point)}b" for code_point in [*range(0xA1), 0xAD, 0x200D, 0x2028, 0xFEFF, 0xFFFD, 0xFFFF]]
    special = [
        f"{before}{token}{after}" for token in SPECIAL for before in ("", "a ", "x") for after in ("", " b", "y")
    ]
    special += [token.lower() for token in SPECIAL] + ["".join(SPECIAL), " ".join(SPECIAL)]
    long = ["word " * 900, "x" * 5000, CHINESE * 30, "ab1 " * 700, "🙂" * 600, "e\u0301" * 400]
    mixed = [" ".join(rng.choices(prose + code + foreign, k=rng.randrange(2, 5))) for _ in range(300)]
    points = [*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x370, 0x500), *range(0x4E00, 0x4F00), 0x1F600, 0x1D400]
    noise = ["".join(map(chr, rng.choices(points, k=rng.randrange(1, 40)))) for _ in range(600)]
    return prose + code + digits + space + foreign + control + special + long + mixed + noise
