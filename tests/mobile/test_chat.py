"""bcq_chat_render: the strict reader of chat frames, and prompts."""

from __future__ import annotations

import ctypes
import json
import random
from pathlib import Path
from typing import Any

import pytest
from mobile_parts import SANITIZERS, build_library, build_program, run

from bcquant.exporters.mobile.texts import chat_frames
from bcquant.runtime.chat import Message as Turn
from bcquant.runtime.chat import render_chat
from bcquant.runtime.tokenizer import open_tokenizer

PARTS = ("chat", "error", "memory", "random", "unicode")
BAD_ARGUMENT, BAD_SHAPE, UNSUPPORTED, BAD_BLOB = 1, 2, 3, 6
SYSTEM, USER, ASSISTANT = 0, 1, 2
FRAMES: dict[str, Any] = {
    "bos": "<s>",
    "no_system": "[default]",
    "roles": {"system": ["[S]", "[/S]"], "user": ["[U]", "[/U]"], "assistant": ["[A]", "[/A]"]},
    "generate": "[A]",
}
GOOD = json.dumps(FRAMES)


class Message(ctypes.Structure):
    _fields_ = (
        ("role", ctypes.c_int32),
        ("content", ctypes.c_char_p),
        ("content_bytes", ctypes.c_size_t),
    )


class Chat:
    """bcq_chat_render with Python values."""

    def __init__(self, folder: Path) -> None:
        self.c = build_library(folder, PARTS)

    def render(self, frames: str | bytes, *messages: tuple[int, str]) -> tuple[int, str]:
        """Status, and the prompt or the error's sentence."""
        data = frames.encode() if isinstance(frames, str) else frames
        contents = [(role, content.encode()) for role, content in messages]
        array = (Message * len(contents))(*((r, c, len(c)) for r, c in contents))
        needed = ctypes.c_size_t(77)
        start = (data, ctypes.c_size_t(len(data)), array, len(contents))
        status = self.c.bcq_chat_render(*start, None, ctypes.c_size_t(0), ctypes.byref(needed))
        if status != 0:
            assert needed.value == 0
            return status, self.c.bcq_error_text().decode()
        out = ctypes.create_string_buffer(b"#" * (needed.value + 1))
        status = self.c.bcq_chat_render(*start, out, needed, ctypes.byref(needed))
        assert out.raw[needed.value : needed.value + 1] == b"#"  # nothing beyond it was written
        return status, out.raw[: needed.value].decode()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat(tmp_path_factory.mktemp("chat"))


def frames(**changed: Any) -> str:
    return json.dumps({**FRAMES, **changed})


# ---- prompts


def test_frames_stand_around_messages(chat: Chat) -> None:
    conversation = [(USER, "hi"), (ASSISTANT, "yes?"), (USER, "")]
    wanted = "[U]hi[/U][A]yes?[/A][U][/U][A]"
    assert chat.render(GOOD, *conversation) == (0, "<s>[default]" + wanted)
    assert chat.render(GOOD, (SYSTEM, "be"), *conversation) == (0, "<s>[S]be[/S]" + wanted)


def test_contents_are_copied_as_they_are(chat: Chat) -> None:
    for content in ("  \n", '"\\u0041', "\u4f60\u597d\U0001f600", "a\x00b", "[U]"):
        wanted = f"<s>[default][U]{content}[/U][A]"
        assert chat.render(GOOD, (USER, content)) == (0, wanted)


def test_trimmed_contents_are_those_of_str_strip(chat: Chat) -> None:
    data, r = frames(trim=True), random.Random(9)
    spaces = [chr(c) for c in range(0x110000) if chr(c).isspace()]
    others = [
        "",
        "a",
        "\u200b",
        "\ufeff",
        "\x1b",
        "\x00",
        "\u00e9",
        "\u4f60",
        "\U0001f600",
        "\u2580",
    ]
    texts = [*spaces, *(c + "x" + c for c in spaces), "".join(spaces), *others]
    texts += ["".join(r.choices([*spaces, *others], k=r.randrange(9))) for _ in range(3000)]
    for text in texts:
        wanted = f"<s>[S]{text.strip()}[/S][U]{text[::-1].strip()}[/U][A]"
        assert chat.render(data, (SYSTEM, text), (USER, text[::-1])) == (0, wanted), ascii(text)
    assert chat.render(frames(trim=False), (USER, " x ")) == (0, "<s>[default][U] x [/U][A]")


def test_every_character_that_is_no_space_stays(chat: Chat) -> None:
    points = (c for c in range(0x110000) if not (0xD800 <= c <= 0xDFFF or chr(c).isspace()))
    text = "".join(map(chr, points))
    one_by_one = [(USER, c) for c in text[:0x3100]]
    wanted = "".join(f"[U]{c}[/U]" for c in text[:0x3100])
    assert chat.render(frames(trim=True), *one_by_one) == (0, f"<s>[default]{wanted}[A]")
    assert chat.render(frames(trim=True), (USER, text[::-1]))[1].count(text[::-1]) == 1


@pytest.mark.parametrize(
    "content", [b"\xff \x80", b"\x80\x80\x80\x80", b"\xa0", b" \xe3\x80 ", b"\x85"]
)
def test_broken_bytes_are_no_white_space(chat: Chat, content: bytes) -> None:
    message, needed = (Message * 1)((USER, content, len(content))), ctypes.c_size_t()
    out, data = ctypes.create_string_buffer(99), frames(trim=True).encode()
    sizes = ctypes.c_size_t(len(data)), ctypes.c_size_t(99)
    arguments = (data, sizes[0], message, 1, out, sizes[1], ctypes.byref(needed))
    assert chat.c.bcq_chat_render(*arguments) == 0
    wanted = b"<s>[default][U]" + content.strip(b" ") + b"[/U][A]"
    assert out.raw[: needed.value] == wanted


@pytest.mark.parametrize("as_ascii", [False, True])
def test_every_character_of_a_frame_is_read_as_python_reads_it(chat: Chat, as_ascii: bool) -> None:
    r = random.Random(4)
    # Both ends of every length in UTF-8 and of the surrogates, and random ones between.
    points = [*range(0x20), 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    points += [r.choice([r.randrange(0xD800), r.randrange(0xE000, 0x110000)]) for _ in range(3000)]
    text = "".join(map(chr, points)) + '\\"/'
    roles = {**FRAMES["roles"], "user": [text, text[::-1]]}
    data = json.dumps({**FRAMES, "roles": roles, "bos": text}, ensure_ascii=as_ascii)
    wanted = f"{text}[default]{text}x{text[::-1]}[A]"
    assert chat.render(data, (USER, "x")) == (0, wanted)


def test_order_and_white_space_of_the_json_do_not_matter(chat: Chat) -> None:
    data = json.dumps(dict(reversed(FRAMES.items())), indent=3)
    spaced = "\r\n\t " + data + " \n"
    assert chat.render(spaced, (USER, "x")) == chat.render(GOOD, (USER, "x"))


def test_escapes_of_either_case(chat: Chat) -> None:
    data = GOOD.replace("<s>", r"\u00e9\u00C9\ud83D\uDe00\/\b")
    assert chat.render(data, (USER, "x")) == (0, "\u00e9\u00c9\U0001f600/\b[default][U]x[/U][A]")


def test_a_prompt_without_room_is_only_counted(chat: Chat) -> None:
    message, needed = (Message * 1)((USER, b"hi", 2)), ctypes.c_size_t()
    out = ctypes.create_string_buffer(b"#" * 100)
    data, wanted = GOOD.encode(), b"<s>[default][U]hi[/U][A]"
    for capacity, is_written in ((0, False), (len(wanted) - 1, False), (len(wanted), True)):
        status = chat.c.bcq_chat_render(
            data, ctypes.c_size_t(len(data)), message, 1, out, ctypes.c_size_t(capacity),
            ctypes.byref(needed),
        )  # fmt: skip
        assert (status, needed.value) == (0, len(wanted))
        assert out.raw.startswith(wanted if is_written else b"####")


def test_prompts_are_those_of_the_demo_models_template(chat: Chat, demo_model: Path) -> None:
    tokenizer = open_tokenizer(demo_model)
    data = json.dumps(chat_frames(tokenizer), ensure_ascii=False)
    r = random.Random(6)
    roles = {USER: "user", ASSISTANT: "assistant", SYSTEM: "system"}
    parts = ["a", " ", "\n", "\u4f60", "<|im_end|>", "{{ x }}", '"', "\\n"]
    for case in range(200):
        order = [SYSTEM] * (case % 2) + [USER, ASSISTANT] * (case % 4) + [USER]
        texts = ["".join(r.choices(parts, k=r.randint(0, 9))) for _ in order]
        messages = [
            Turn(role=roles[role], content=text) for role, text in zip(order, texts, strict=True)
        ]
        wanted = render_chat(tokenizer.chat_template, messages, "<|im_start|>", "<|im_end|>")
        assert chat.render(data, *zip(order, texts, strict=True)) == (0, wanted)


# ---- refusals


def test_system_messages_have_one_place(chat: Chat) -> None:
    status, reason = chat.render(GOOD, (USER, "x"), (SYSTEM, "y"))
    assert (status, reason) == (
        UNSUPPORTED, "message 1: only the first message can be a system message"
    )  # fmt: skip
    without = frames(roles={k: v for k, v in FRAMES["roles"].items() if k != "system"})
    assert chat.render(without, (USER, "x")) == (0, "<s>[default][U]x[/U][A]")
    status, reason = chat.render(without, (SYSTEM, "y"), (USER, "x"))
    assert (status, reason) == (
        UNSUPPORTED, "message 0: this model's chat has no system message"
    )  # fmt: skip


@pytest.mark.parametrize("role", [-1, 3, 2**31 - 1, -(2**31)])
def test_a_role_that_does_not_exist_is_refused(chat: Chat, role: int) -> None:
    assert chat.render(GOOD, (USER, "x"), (role, "y"))[0] == BAD_ARGUMENT


def test_no_message_is_refused(chat: Chat) -> None:
    assert chat.render(GOOD)[0] == BAD_ARGUMENT


def test_null_and_sizes_beyond_the_address_space(chat: Chat) -> None:
    data, needed, size = GOOD.encode(), ctypes.c_size_t(), ctypes.c_size_t
    message, out = (Message * 1)((USER, b"hi", 2)), ctypes.create_string_buffer(99)
    good = [data, size(len(data)), message, 1, out, size(99), ctypes.byref(needed)]
    assert chat.c.bcq_chat_render(*good) == 0
    for at, value in ((0, None), (2, None), (3, 0), (3, -1), (4, None), (6, None)):
        assert chat.c.bcq_chat_render(*good[:at], value, *good[at + 1 :]) == BAD_ARGUMENT
    good[2] = (Message * 1)((USER, None, 1))
    assert chat.c.bcq_chat_render(*good) == BAD_ARGUMENT
    huge = (Message * 2)((USER, b"", 2**63), (USER, b"", 2**63))
    counted = [data, size(len(data)), huge, 2, None, size(0), ctypes.byref(needed)]
    assert chat.c.bcq_chat_render(*counted) == BAD_SHAPE
    assert needed.value == 0


MISSING = [{k: v for k, v in FRAMES.items() if k != key} for key in FRAMES]
NO_ROLE = [
    {**FRAMES, "roles": {k: v for k, v in FRAMES["roles"].items() if k != key}}
    for key in ("user", "assistant")
]
WRONG_VALUES = [{**FRAMES, key: v} for key in FRAMES for v in (None, 1, True, [], {}, ["a", "b"])]
WRONG_PAIRS = [
    {**FRAMES, "roles": {**FRAMES["roles"], "user": v}}
    for v in ("ab", [], ["a"], ["a", "b", "c"], [1, 2], ["a", None], {"a": "b"}, [["a", "b"]])
]


@pytest.mark.parametrize("value", [*MISSING, *NO_ROLE, *WRONG_VALUES, *WRONG_PAIRS, [], "x", 1])
def test_json_of_another_shape_is_refused(chat: Chat, value: Any) -> None:
    status, reason = chat.render(json.dumps(value), (USER, "x"))
    assert status == BAD_BLOB
    assert reason.startswith("chat frames: byte ")


@pytest.mark.parametrize("value", ["1", "null", '"true"', "True", "truefalse", "tru", "[]", ""])
def test_trim_is_true_or_false(chat: Chat, value: str) -> None:
    data = GOOD[:-1] + ', "trim": ' + value
    for text in (data, data + "}", data + ', "trim": true}'):
        assert chat.render(text, (USER, "x"))[0] == BAD_BLOB


@pytest.mark.parametrize(
    "inside",
    [
        rb"\x", rb"\u12", rb"\u12g4", rb"\ud800", rb"\ud800x", rb"\ud800\n", rb"\ud800\ud800",
        rb"\udc00", rb"\ud83d\u0041", rb"\ud83d\ude0", b"\n", b"\x00", b"\x1f", b"\x80",
        b"\xc0\xaf", b"\xc1\xbf", b"\xc3", b"\xe0\x80\x80", b"\xe2\x82", b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xe2\x82\x28",
    ],
)  # fmt: skip
def test_strings_that_are_no_json_are_refused(chat: Chat, inside: bytes) -> None:
    status, reason = chat.render(GOOD.encode().replace(b"<s>", inside), (USER, "x"))
    assert (status, reason) == (
        BAD_BLOB,
        f"chat frames: byte {GOOD.index('<s>')}: a character of a JSON string is needed",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("}}", "}}}"), ("}}", "},}"), ('"<s>",', '"<s>",,'), ('"<s>",', '"<s>"'), ("{", "[{"),
        ('"bos":', '"bos"'), ('"bos"', "bos"), ('"bos"', "'bos'"), ("{", "{,"), ("{", "\ufeff{"),
        ('"<s>"', '"<s>'), ('"<s>",', '"<s>","bos":"",'), ('["[U]",', '["[U]",,'),
        ('"user"', '"system"'), ('"[A]"}', '"[A]"}\x00'), ('"[A]"}', '"[A]"} x'),
        ('"[A]"}', '"[A]"}{}'), ('"[A]"}', '"[A]"'), ('"<s>"', '"<s>" /* c */'), ('"<s>"', '"\\"'),
    ],
)  # fmt: skip
def test_json_with_an_error_is_refused(chat: Chat, old: str, new: str) -> None:
    data = GOOD.replace(old, new, 1) if old != "}}" else GOOD[:-1] + new
    assert data != GOOD
    assert chat.render(data, (USER, "x"))[0] == BAD_BLOB


@pytest.mark.parametrize("data", ["", " ", "{", "[" * 100_000, '{"bos":' * 100_000])
def test_an_empty_or_deep_text_is_refused(chat: Chat, data: str) -> None:
    assert chat.render(data, (USER, "x"))[0] == BAD_BLOB


@pytest.mark.parametrize(
    "value", [{**FRAMES, "date": ""}, {**FRAMES, "roles": {**FRAMES["roles"], "tool": ["", ""]}}]
)
def test_a_key_of_the_future_is_unsupported(chat: Chat, value: Any) -> None:
    status, reason = chat.render(json.dumps(value), (USER, "x"))
    assert status == UNSUPPORTED
    assert reason.endswith("this version does not know the key")


def test_damaged_frames_under_the_sanitizers(tmp_path: Path) -> None:
    program = build_program(tmp_path, "chat_test", PARTS, SANITIZERS)
    assert run([program]) == "chat_test: all passed\n"
