"""What `bcquant inspect NAME.bcq` prints: the values of _package_facts.py in lines and tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def print_package(path: str, context: int | None, as_json: bool) -> None:
    """Open a package and print what it holds.

    Args:
        context: tokens of the session whose memory is planned; None = 2048, or what the model has.
    Raises:
        CheckpointError: it cannot be opened, or a text inside is damaged.
    """
    from bcquant.cli._package_facts import package_facts
    from bcquant.io.package import open_package

    with open_package(path) as package:
        facts = package_facts(package, context)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    for label, value in _lines(facts):
        console.print(f"{label:<16}{printable(value)}", markup=False)
    console.print()
    console.print(_section_table(facts["sections"]))
    if facts["certificate"] is not None:
        console.print(_check_table(facts["certificate"]["checks"]))


def printable(text: str) -> str:
    """The text without characters that a terminal would obey: a package may come from anyone."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    size, shards = facts["file_bytes"], facts["shards"]
    files = "one file" if len(shards) == 1 else f"{len(shards)} files beside it"
    return [
        ("path", facts["path"]),
        ("format", f"{facts['format']}, {files}, sha256 of the index {facts['sha256']}"),
        ("signature", _signature(facts["signed_by"])),
        ("origin", _origin(facts["origin"])),
        ("model", _model(facts["model"])),
        ("tokens", _special(facts["model"])),
        ("activations", f"{facts['model']['activations']} unless the program says otherwise"),
        ("tokenizer", _tokenizer(facts["tokenizer"])),
        ("chat", _chat(facts["chat"])),
        ("sampling", _sampling(facts["generation"])),
        ("weights", f"{facts['num_weights']:,}, {facts['bits_per_weight']:.3f} bits each"),
        ("size", f"{size:,} bytes ({size / 1e6:.1f} MB)"),
        ("memory plan", _plan(facts["plan"])),
        ("certificate", _certificate(facts["certificate"])),
    ]


def _signature(signed_by: str | None) -> str:
    if signed_by is None:
        return "none beside it"
    return f"says key {signed_by}; not verified here"


def _model(model: dict[str, Any]) -> str:
    heads = f"{model['num_heads']} heads of {model['head_dim']}"
    shared = "" if model["num_kv_heads"] == model["num_heads"] else (
        f" over {model['num_kv_heads']} of keys and values"
    )  # fmt: skip
    position = "ALiBi" if model["is_alibi"] else "rotary"
    tied = ", the head is the embedding" if model["ties_head"] else ""
    return (
        f"{model['num_layers']} layers, hidden {model['hidden_size']}, inner "
        f"{model['intermediate_size']}, {heads}{shared}, vocabulary {model['vocab_size']}, "
        f"{model['max_positions']} {position} positions{tied}"
    )


def _special(model: dict[str, Any]) -> str:
    ends = ", ".join(map(str, model["eos_ids"])) or "none"
    return f"begin {_id(model['bos_id'])}, end {ends}, padding {_id(model['pad_id'])}"


def _id(value: int | None) -> str:
    return "none" if value is None else str(value)


def _origin(origin: dict[str, Any] | None) -> str:
    if origin is None:
        return "not stated"
    source = origin.get("source")
    source = source if isinstance(source, dict) else {}
    name, kind, family = (source.get(key, "not stated") for key in ("name", "kind", "family"))
    return f"{name} ({kind}, family {family}), exported by bcquant {origin.get('bcquant')}"


def _tokenizer(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none here; only ids go in and out"
    cut = tokenizer["pre_tokenizer"]
    words = "" if cut is None else f", words cut as {cut}"
    merges = f", {tokenizer['num_merges']} merges" if tokenizer["num_merges"] else ""
    added = [name for name in ("begin", "end") if tokenizer[f"{name}_id"] is not None]
    puts = f", puts in {' and '.join(added)} tokens" if added else ""
    return f"{tokenizer['kind']}, {tokenizer['num_tokens']} tokens{merges}{words}{puts}"


def _chat(chat: dict[str, Any]) -> str:
    if chat["roles"] is not None:
        return f"frames for {', '.join(chat['roles'])}: apps render conversations"
    if chat["has_template"]:
        return "a Jinja template without frames: apps write the prompt themselves"
    return "none"


def _sampling(generation: dict[str, Any] | None) -> str:
    if generation is None:
        return "no defaults"
    return ", ".join(f"{name} {value}" for name, value in generation.items())


def _plan(plan: dict[str, Any]) -> str:
    if plan["problem"] is not None:
        return f"none: {plan['problem']}"
    parts = ", ".join(
        f"{name} {plan[f'{key}_bytes'] / 1e6:.1f}"
        for name, key in (("caches", "kv"), ("scratch", "scratch"), ("tables", "table"))
    )
    return (
        f"{plan['total_bytes'] / 1e6:.1f} MB for {plan['context']} tokens in {plan['kv_type']}: "
        f"weights {plan['weight_bytes'] / 1e6:.1f} (mapped), {parts}"
    )


def _certificate(certificate: dict[str, Any] | None) -> str:
    if certificate is None:
        return "none; `bcquant verify` makes one, `bcquant export mobile --certificate` puts it in"
    passed = sum(row["passed"] is True for row in certificate["checks"])
    return (
        f"verdict {certificate['verdict']}: {passed} of {len(certificate['checks'])} checks "
        f"passed, measured with {certificate['backend']}"
    )


def _section_table(groups: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="sections", title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("format", overflow="fold")
    for heading in ("count", "bytes", "bits/weight"):
        table.add_column(heading, justify="right")
    for group in groups:
        weights = group["num_weights"]
        bits = f"{8 * group['num_bytes'] / weights:.3f}" if weights else ""
        table.add_row(
            group["name"], group["format"], str(group["count"]), f"{group['num_bytes']:,}", bits
        )
    return table


def _check_table(checks: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="what the certificate measured", title_justify="left")
    table.add_column("check")
    table.add_column("passed")
    table.add_column("figures", overflow="fold")
    for row in checks:
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in row["figures"].items())
        passed = "yes" if row["passed"] is True else "no"
        table.add_row(Text(printable(str(row["name"]))), passed, Text(printable(figures)))
    return table


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
