"""Texts on which tokenizers differ if they differ at all."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_PIECES = 64  # of a vocabulary's special and user-defined ones

PLAIN = (
    "",
    " ",
    "   ",
    "\t",
    "\n",
    "\n\n\n",
    "\r\n",
    "word",
    " word",
    "  two spaces before",
    "   three before, one after ",
    "after  ",
    "in  the   middle    of    it",
    "tab\tand\ttabs\t\there",
    "\tindented",
    "first line\nsecond line\n\nfourth line\n",
    "windows line\r\nends here\r\n",
    " \n \n mixed \t\n",
    "It's what we'll say, isn't it? I'd've thought so; they're there.",
    "UPPER lower MiXeD camelCaseName snake_case_name kebab-case-name",
    "0 1 12 123 1234 12345 3.14159 1,000,000 1e-9 0x1F v2.0.1 2026-11-24T12:43:52Z",
    "007 agents and 100% of 50/50",
    "def f(x):\n    if x >= 10:\n        return {'a': [1, 2], \"b\": None}  # done\n\n\nf(3)",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c; }\t// sum",
    '<html><body class="x">&amp; text</body></html>',
    "https://example.org/path?query=value&other=1#part me@example.org",
    "!!! ??? ... --- *** ((())) [[[]]] {{{}}} <<<>>> $$$ %% ^^ ~~ `` '' \"\"",
    "naïve café Zürich façade Ångström señor œuvre ß",
    "nai\u0308ve cafe\u0301 decomposed accents",
    "Привет, мир! Где находится библиотека?",
    "Γειά σου Κόσμε",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "안녕하세요 세계",
    "今天天气很好，我们去公园散步吧。",
    "中文 and English 混合 text，数字123和标点！",
    "她说：“这本书（第二版）多少钱？”",
    "今日は良い天気ですね。カタカナとひらがな、漢字。",
    "ｆｕｌｌｗｉｄｔｈ　ｓｐａｃｅ",
    "emoji 😀 and 🎉🎉 and ❤️",
    "family 👨‍👩‍👧‍👦 flag 🇨🇭 thumb 👍🏽 technician 👩🏿‍💻",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙 ∑∫√∞≠ ℝ",
    "rare: 𓀀 𒀀 𐍈 ꙮ \U0002f81a",
    "zero\u200bwidth no\u00a0break thin\u2009space soft\u00adhyphen",
    "\ufeffbyte order mark",
    "replacement \ufffd and control \x01\x02\x7f",
    "literal mark \u2581 and \u2581\u2581 and Ġ Ċ",
    "a" * 300,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "ab" * 100 + " " * 40 + "end",
    "\n".join(f"{i}. item {i * i}" for i in range(12)),
)


def hard_corpus(pieces: Sequence[str]) -> list[str]:
    """The fixed texts, and texts with a tokenizer's own special and user-defined pieces.

    Args:
        pieces: spellings that its vocabulary takes whole from a text.
    """
    texts = list(PLAIN)
    for piece in [piece for piece in pieces if piece][:_MAX_PIECES]:
        texts += [piece, f"before{piece}after", f"before {piece} after", f"{piece}{piece}\n"]
    return texts
