"""Texts of a package that an app cannot work out itself: chat frames and generation defaults.

A phone runs no Jinja. Most chat templates only put fixed strings around each message, so those
strings are found by rendering conversations of marked contents, and then proved: with contents
copied as they are, or else stripped, the frames must give, letter by letter, what the template
gives for conversations of many shapes and contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from bcquant.errors import ConfigError
from bcquant.models.source import ModelSource
from bcquant.runtime.chat import Message, render_chat
from bcquant.runtime.sampling_defaults import sampling_defaults
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.text_codec import Tokenizer

Frames = dict[str, Any]

_MARKS = ("qzjone", "qzjtwo", "qzjthree")
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
# Conversations by the initials of their roles. The regular ones must be rendered by the template;
# the irregular ones must agree where the template does not refuse them.
_REGULAR = ("u", "ua", "uau", "uaua", "uauau", "uauauauauau")
_IRREGULAR = ("uu", "au", "a", "uaau", "")
# All that Python, and so Jinja, strips.
_SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_CONTENTS = (
    "plain", "", " ", "\n", "  two before", "after  ", "\nline\n", "\r\n", "\ttab\t", "a\n\n b",
    "\u3000ideographic\u3000", "\u00a0no-break\u00a0", "\u200bzero width\u200b", "{{ x }}{% y %}",
    f"{_SPACES}a{_SPACES}b{_SPACES}", f"\u200b{_SPACES}\ufeff", _SPACES,
    "<b>&amp;</b> \"quoted\" 'it'", "back\\slash", "None", "0", "\U0001f600", "long " * 500,
)  # fmt: skip


def chat_frames(tokenizer: Tokenizer) -> Frames | None:
    """What stands around the messages of a conversation, docs/formats/bcq_package_v1.md, kind 66.

    Returns:
        the frames, without the role "system" where the template has no fixed place for one, and
        with "trim" where it strips every content; None for a model without a template, and for a
        template whose text depends on anything but such contents between fixed strings: a date, a
        position, stripping of some, a certain content.
    """
    template = _Template(tokenizer)
    # A date is the same in all renderings of today.
    if template.source is None or "strftime_now" in template.source:
        return None
    plain = _find(template)
    if plain is None:
        return None
    contents = [*_CONTENTS, *template.strings()]
    found = [f for f in (_with_system(template, plain), plain) if f is not None]
    candidates = [*found, *({**frames, "trim": True} for frames in found)]
    return next((f for f in candidates if _holds(template, f, contents)), None)


def frames_text(frames: Frames, messages: Sequence[Message]) -> str:
    """The prompt of a conversation by its frames, as the mobile runtime puts it together.

    Args:
        frames: of `chat_frames`.
        messages: at least one; a system message only as the first, and only if frames have it.
    """
    text: str = frames["bos"]
    if messages[0]["role"] != "system":
        text += frames["no_system"]
    for message in messages:
        before, after = frames["roles"][message["role"]]
        content = message["content"].strip() if frames.get("trim") else message["content"]
        text += before + content + after
    return text + str(frames["generate"])


def generation_defaults(source: ModelSource) -> dict[str, int | float]:
    """The sampling settings that a checkpoint suggests, by the names of generation_config.json.

    Settings that no sampler accepts (a temperature below 0) are left out; empty if there are none.

    Raises:
        CheckpointError: generation_config.json is not readable JSON.
    """
    return {name: v for name, v in sampling_defaults(source).items() if _is_valid(name, v)}


class _Template:
    """A chat template with the strings of its tokenizer; None for a conversation it refuses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        bos, eos = tokenizer.bos_id, next(iter(tokenizer.eos_ids), None)
        self.source = tokenizer.chat_template
        self.bos = "" if bos is None else tokenizer.backend.piece(bos) or ""
        self.eos = "" if eos is None else tokenizer.backend.piece(eos) or ""

    def render(self, messages: Sequence[Message], generate: bool = True) -> str | None:
        try:
            return render_chat(self.source, messages, self.bos, self.eos, generate)
        except ConfigError:
            return None

    def gaps(self, roles: str) -> list[str] | None:
        """Texts before, between and after marked contents, without the start of an answer."""
        marks = _MARKS[: len(roles)]
        text = self.render(_conversation(roles, marks), generate=False)
        found = []
        for mark in marks:
            if text is None or text.count(mark) != 1:
                return None
            before, _, text = text.partition(mark)
            found.append(before)
        return None if text is None else [*found, text]

    def strings(self) -> list[str]:
        """Contents that the template may treat in a way of its own: the strings that it names.

        Also each with its neighbours, as a test for a start and for an end stand side by side.
        """
        from jinja2 import Environment, nodes

        syntax = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(self.source or "")
        named = [c.value for c in syntax.find_all(nodes.Const) if isinstance(c.value, str)]
        named = [s for s in dict.fromkeys([self.bos, self.eos, *named]) if s]
        pairs = [f"{a} and {b}" for a, b in pairwise(named)]
        return [*named, *(f"x{s}y" for s in named), *pairs]


def _find(template: _Template) -> Frames | None:
    """Frames of user and assistant, with everything before the first message as `bos`."""
    one, two, three = (template.gaps(roles) for roles in ("u", "ua", "uau"))
    question = [Message(role="user", content=_MARKS[0])]
    ends, answers = template.render(question, generate=False), template.render(question)
    if one is None or two is None or three is None or ends is None or answers is None:
        return None
    opening, after_user = one
    after_assistant = two[2]
    before_assistant = _without_start(two[1], after_user)
    before_user = _without_start(three[2], after_assistant)
    generate = _without_start(answers, ends)
    if before_assistant is None or before_user is None or generate is None:
        return None
    bos = _without_end(opening, before_user)
    if bos is None:
        return None
    roles = {"user": [before_user, after_user], "assistant": [before_assistant, after_assistant]}
    return {"bos": bos, "no_system": "", "roles": roles, "generate": generate}


def _with_system(template: _Template, frames: Frames) -> Frames | None:
    """The frames with those of a system message; None where it has no place of its own."""
    gaps = template.gaps("su")
    if gaps is None:
        return None
    after = _without_end(gaps[1], frames["roles"]["user"][0])
    if after is None:
        return None
    opening = frames["bos"]  # of a conversation without a system message
    # One that opens in another way, with a system message by default, has no common beginning.
    common = opening if gaps[0].startswith(opening) else ""
    roles = {"system": [gaps[0][len(common) :], after], **frames["roles"]}
    return {**frames, "bos": common, "no_system": opening[len(common) :], "roles": roles}


def _holds(template: _Template, frames: Frames, contents: Sequence[str]) -> bool:
    """Whether the frames give the template's text for every probe."""
    starts = ("", "s") if "system" in frames["roles"] else ("",)
    for start in starts:
        for messages in _probes(start, contents):
            if template.render(messages) != frames_text(frames, messages):
                return False
        for roles in _IRREGULAR:
            messages = _conversation(start + roles, [f"{i}." for i in range(len(roles) + 1)])
            if messages and template.render(messages) not in (None, frames_text(frames, messages)):
                return False
    return True


def _probes(start: str, contents: Sequence[str]) -> Iterator[list[Message]]:
    """Every regular shape, and every content in every place of a short one."""
    for roles in _REGULAR:
        yield _conversation(start + roles, [f"{i}." for i in range(len(roles) + 1)])
    for i in range(len(contents)):
        yield _conversation(start + "u", [contents[i], contents[i - 1]])
        yield _conversation(start + "uau", [contents[i - n] for n in range(4)])


def _conversation(roles: str, contents: Sequence[str]) -> list[Message]:
    """Messages of roles given by their initials; contents that are left over are not used."""
    return [Message(role=_ROLES[r], content=c) for r, c in zip(roles, contents, strict=False)]


def _without_start(text: str, start: str) -> str | None:
    return text[len(start) :] if text.startswith(start) else None


def _without_end(text: str, end: str) -> str | None:
    return text[: len(text) - len(end)] if text.endswith(end) else None


def _is_valid(name: str, value: float) -> bool:
    try:
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    except ConfigError:
        return False
    return True
