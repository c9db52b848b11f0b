"""Chat frames are found where a template has them, and refused where it has not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint
from tiny_tokenizers import byte_level_folder

from bcquant.cli import main
from bcquant.errors import CheckpointError
from bcquant.exporters.mobile.texts import chat_frames, frames_text, generation_defaults
from bcquant.models.source import open_model
from bcquant.runtime.chat import Message, render_chat
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.tokenizer import open_tokenizer

LOOP = "{% for m in messages %}"
ANSWER = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + ANSWER
DEFAULT_SYSTEM = (
    LOOP + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}" + ANSWER
)
HEADERS = (
    "{{ bos_token }}" + LOOP + "<|head|>{{ m.role }}<|end|>\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|end|>\n\n{% endif %}"
)
# Alternation is checked; the begin token is not repeated; no start of an answer.
INSTRUCTIONS = (
    "{{ bos_token }}" + LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)
EVERY_TURN_BEGINS = (
    LOOP + "{% if m.role == 'user' %}{{ bos_token }}U: {{ m.content }}\n{% elif m.role == 'system' "
    "%}{{ m.content }}\n{% else %}A: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
PREAMBLE = (
    "{{ bos_token }}A chat.\n" + LOOP + "{% if m.role == 'system' %}Rules: {{ m.content }}\n"
    "{% elif m.role == 'user' %}<u>{{ m.content }}</u>{% else %}<a>{{ m.content }}</a>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
# Llama 3's way, and Gemma's: the role is another word, and a system message is refused.
TRIMMED_HEADERS = (
    LOOP + "{% set text = '<|head|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|end|>\n\n' }}{% endif %}"
)
TRIMMED_TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}" + LOOP + "{% if m.role == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m.role %}{% endif %}{{ '<turn>' + role + '\n' + m.content | trim + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "default_system": DEFAULT_SYSTEM,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "every_turn_begins": EVERY_TURN_BEGINS,
    "preamble": PREAMBLE,
    "trim": CHATML.replace("m.content", "m.content | trim"),
    "strip": CHATML.replace("m.content", "m.content.strip()"),
    "trimmed_headers": TRIMMED_HEADERS,
}
TRIMS = ("trim", "strip", "trimmed_headers")

# What the frames cannot say: each would be wrong for some conversation.
REFUSED = {
    "answers_are_stripped": LOOP + "{{ m.role }}: {% if m.role == 'assistant' %}"
    "{{ m.content.strip() }}{% else %}{{ m.content }}{% endif %};" + ANSWER,
    "ideographic_space_is_stripped": CHATML.replace("m.content", "m.content.strip('\u3000')"),
    "only_the_start_is_stripped": CHATML.replace("m.content", "m.content.lstrip()"),
    "ascii_spaces_are_stripped": CHATML.replace("m.content", "m.content.strip(' \n\t\r')"),
    "only_the_last_is_stripped": CHATML.replace(
        "{{ m.content }}", "{{ m.content | trim if loop.last else m.content }}"
    ),
    "date": "{{ strftime_now('%Y') }}" + CHATML,
    "counted": CHATML.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}"),
    "last_is_open": CHATML.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}"),
    "long_history_is_cut": CHATML.replace("in messages", "in messages[-7:]"),
    "only_an_even_answer_has_a_mark": CHATML.replace(
        "{{ m.role }}", "{{ m.role }}{% if loop.index % 4 == 0 %}!{% endif %}"
    ),
    "an_answer_has_thoughts": CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
    "a_certain_start_and_end": CHATML.replace(
        "{{ m.role }}",
        "{% if m.content.startswith('<tool>') and m.content.endswith('</tool>') %}tool"
        "{% else %}{{ m.role }}{% endif %}",
    ),
    "a_certain_content": CHATML.replace(
        "{{ m.content }}", "{% if m.content == 'help' %}?{% else %}{{ m.content }}{% endif %}"
    ),
    "an_empty_content": CHATML.replace("{{ m.content }}", "{{ m.content or '(nothing)' }}"),
    "upper": CHATML.replace("m.content", "m.content | upper"),
    "escaped": CHATML.replace("m.content", "m.content | e"),
    "json": CHATML.replace("m.content", "m.content | tojson"),
    "twice": CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
    "two_questions_are_one": LOOP + "{% if not loop.first and m.role == loop.previtem.role %} and "
    "{% else %}<{{ m.role }}>{% endif %}{{ m.content }};" + ANSWER,
    "another_beginning_for_an_answer": "{% if add_generation_prompt %}(answer){% endif %}" + CHATML,
    "no_place_for_answers": CHATML.replace("in messages", "in messages if m.role == 'user'"),
    "refuses_answers": CHATML.replace(
        "{{ m.role }}", "{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    ),
    "random": CHATML.replace("{{ m.role }}", "{{ m.role }}{{ [1, 2, 3, 4, 5, 6, 7] | random }}"),
    "error": "{% for",
    "nothing": "",
}

# The system message has no fixed place, and all else has.
WITHOUT_SYSTEM = {
    "refused": CHATML.replace(
        "{{ m.role }}",
        "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.role }}",
    ),
    "inside_the_question": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}" + LOOP + "[{{ m.role }}"
    "{% if loop.first and s is defined %}<<{{ s }}>>{% endif %}]{{ m.content }};" + ANSWER,
    "stripped": CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'system' %}{{ m.content | trim }}{% else %}{{ m.content }}{% endif %}",
    ),
    "stripped_but_this": CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'system' %}{{ m.content }}{% else %}{{ m.content | trim }}{% endif %}",
    ),
    "trimmed_turns": TRIMMED_TURNS,
    "passed_over": CHATML.replace("in messages", "in messages if m.role != 'system'"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(byte_level_folder(tmp_path_factory.mktemp("t") / "tiny", "gpt2"))


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer.backend, replace(tokenizer.special, chat_template=template))


CONVERSATIONS = [
    [Message(role="system", content="Be brief. ")],
    [Message(role="user", content=" What is it?\n")],
    [Message(role="assistant", content="")],
    [Message(role="user", content="\u4f60\u597d {{ x }}")],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_frames_give_the_text_of_the_template(tokenizer: Tokenizer, name: str) -> None:
    frames = chat_frames(with_template(tokenizer, TEMPLATES[name]))
    assert frames is not None
    keys = {"bos", "no_system", "roles", "generate"}
    assert set(frames) == (keys | {"trim"} if name in TRIMS else keys)
    assert json.loads(json.dumps(frames)) == frames
    assert ("system" in frames["roles"]) == (name != "instructions")
    first = 0 if "system" in frames["roles"] else 1
    for start in {first, 1}:
        for end in range(start + 1, 5):
            messages = [m for part in CONVERSATIONS[start:end] for m in part]
            wanted = render_chat(TEMPLATES[name], messages, "<s>", "</s>")
            assert frames_text(frames, messages) == wanted


def test_frames_of_a_template_with_a_default_system_message(tokenizer: Tokenizer) -> None:
    assert chat_frames(with_template(tokenizer, DEFAULT_SYSTEM)) == {
        "bos": "",
        "no_system": "<|im_start|>system\nBe kind.<|im_end|>\n",
        "roles": {
            "system": ["<|im_start|>system\n", "<|im_end|>\n"],
            "user": ["<|im_start|>user\n", "<|im_end|>\n"],
            "assistant": ["<|im_start|>assistant\n", "<|im_end|>\n"],
        },
        "generate": "<|im_start|>assistant\n",
    }


def test_what_opens_every_conversation_is_its_beginning(tokenizer: Tokenizer) -> None:
    frames = chat_frames(with_template(tokenizer, PREAMBLE))
    assert frames is not None
    assert (frames["bos"], frames["no_system"]) == ("<s>A chat.\n", "")
    assert frames["roles"]["system"] == ["Rules: ", "\n"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_depends_on_more_has_no_frames(tokenizer: Tokenizer, name: str) -> None:
    assert chat_frames(with_template(tokenizer, REFUSED[name])) is None


@pytest.mark.parametrize("name", WITHOUT_SYSTEM)
def test_a_system_message_without_a_place_is_left_out(tokenizer: Tokenizer, name: str) -> None:
    frames = chat_frames(with_template(tokenizer, WITHOUT_SYSTEM[name]))
    assert frames is not None
    assert set(frames["roles"]) == {"user", "assistant"}


def test_no_template_has_no_frames(tokenizer: Tokenizer) -> None:
    assert chat_frames(with_template(tokenizer, None)) is None


def test_the_demo_model_has_frames(demo_model: Path) -> None:
    tokenizer = open_tokenizer(demo_model)
    frames = chat_frames(tokenizer)
    assert frames is not None
    question = [Message(role="user", content="hi")]
    ids = tokenizer.encode(frames_text(frames, question), add_special=False)
    assert ids == tokenizer.encode_chat(question)


# ---- generation defaults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("m") / "tiny", dtype="F16")


def defaults(folder: Path, text: str) -> dict[str, int | float]:
    (folder / "generation_config.json").write_text(text)
    with open_model(folder) as source:
        return generation_defaults(source)


def test_settings_keep_their_names(folder: Path) -> None:
    settings = {
        "temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.25,
    }  # fmt: skip
    text = json.dumps({"do_sample": True, "eos_token_id": 2, "top_h": 1, **settings})
    found = defaults(folder, text)
    assert found == settings
    assert {name: type(value) for name, value in found.items()} == {
        name: int if name == "top_k" else float for name in settings
    }


def test_no_sampling_is_temperature_zero(folder: Path) -> None:
    assert defaults(folder, '{"do_sample": false, "temperature": 0.7}') == {"temperature": 0.0}


@pytest.mark.parametrize(
    "value", ["-1", '"hot"', "null", "true", "[1]", "1e300", "NaN", "-Infinity"]
)
def test_what_no_sampler_accepts_is_left_out(folder: Path, value: str) -> None:
    text = f'{{"temperature": {value}, "top_k": {value}, "top_p": {value}, "min_p": 0.5}}'
    assert defaults(folder, text) == {"min_p": 0.5}


def test_nothing_suggested_is_nothing(folder: Path) -> None:
    assert defaults(folder, "{}") == {}


def test_damaged_settings_are_an_error(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON"):
        defaults(folder, "{")


def test_a_gguf_source_has_the_settings_of_its_keys(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7}')
    out = tmp_path / "a.gguf"
    assert main(["export", "gguf", str(folder), "-o", str(out), "--json"]) == 0
    with open_model(out) as source:
        assert generation_defaults(source) == {"temperature": 0.25, "top_k": 7}
    with open_model(make_gguf_checkpoint("llama", tmp_path / "m.gguf")) as source:
        assert generation_defaults(source) == {}
