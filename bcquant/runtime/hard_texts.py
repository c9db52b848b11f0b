"""Texts on which a tokenizer and its conversion differ if they differ at all.

Whoever rewrites a tokenizer compares ids on them. `bcquant verify` has texts of its own, so that
a gap here is not repeated there.
"""

# Scripts, spaces of every kind, bytes that no piece has, marks, digits, letters that fold oddly.
HARD_TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    " leading and trailing ",
    "  two  between,   three   ",
    "line\n\n\n1. list 12345 items\t\tand tabs\r\n  end\n",
    "CamelCase don't WON'T I'll we've 3.14e-10 == != --flag _x",
    "今天天气很好，我们一起去公园散步吧。他说：“更小，也更快。”",
    "混合 mixed 文本 with 2024年3月1日 dates ３４５",
    "emoji 🎉👨\u200d👩\u200d👧🇨🇳 naïve café Straße",
    "Жди ไทย الع नि",
    "a▁b ⁇ \xa0 \u3000 \u200b \ufeff",
    "\x00\x07\x1b control \x7f",
    "def f(x):\n    return x ** 2  # note\n\tif x:\n\n\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa =====-----.....",
    "𠮷 😀́ 𐍈",
    "▁",
    "CamelCase don't WON'T I'll we've y'ſ 3.14e-10 == != --flag _x",
    "今天天气很好，我们一起去公园。",
    "混合 mixed 文本 with 2024年3月 dates ３４５",
    "emoji 🎉👨\u200d👩\u200d👧 naïve café Straße",
    "Жди ไทย الع नि 한국어",
    "𠮷 😀́ 𐍈 \U00011de5",
    "The quick  brown fox, 12345 times\n\n\tjumped. ",
    "  leading and trailing spaces   ",
    "你好，世界！今天是2024年3月1日。",
    "🎉👨\u200d👩\u200d👧 naïve café",
    "Жди ไทย",
    "aaaaaaa =====----- 0.1e-10",
)
