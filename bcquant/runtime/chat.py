"""A conversation to the one text a model was trained on, by its own Jinja template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn, TypedDict

from bcquant.errors import ConfigError


class Message(TypedDict):
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


def render_chat(
    template: str | None,
    messages: Sequence[Message],
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation.

    The template comes with the model, so it runs in Jinja's immutable sandbox: it can format text
    and nothing else.

    Raises:
        ConfigError: there is no template, it has an error, or it refuses the messages.
    """
    if template is None:
        raise ConfigError("this model has no chat template; use a plain prompt without --chat")
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> NoReturn:
        raise ConfigError(f"chat template: {reason}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages),
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"chat template: {type(error).__name__}: {error}; use a plain prompt"
        ) from error


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
