"""The quantization part of config.json: written as FORMATS.md says, read as others wrote it.

`gptq_config` and `compressed_config` build the dicts of bcquant's own checkpoints;
`parse_quant_config` turns any supported dict into a `QuantSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bcquant import __version__
from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.awq_config import parse_awq
from bcquant.quant.quant_spec import (
    Override,
    QuantSpec,
    checked_pattern,
    field,
    is_ignored_by,
    kind_of,
    strings,
)
from bcquant.spec.quant_format import QuantFormat

__all__ = ["Override", "QuantSpec", "compressed_config", "gptq_config", "parse_quant_config"]

COMPRESSED_TENSORS_VERSION = "0.20.0"  # the release whose readers judged our files


def gptq_config(
    fmt: QuantFormat,
    version: str,
    meta: Mapping[str, Any] | None = None,
    *,
    lm_head: bool = False,
    damp_percent: float = 0.01,
    dynamic: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The dict of quantize_config.json, and of config.json["quantization_config"].

    Args:
        version: "v1" or "v2".
        meta: every setting that was used; stored after "quantizer".
        damp_percent: as readers demand, 0 < damp_percent < 1; the setting itself belongs in `meta`.
        dynamic: name pattern -> overrides, "-:" before a pattern leaves its modules float.
    Raises:
        ConfigError: the version is unknown, damp_percent is out of range, or activations are
            quantized.
    """
    if version not in ("v1", "v2"):
        raise ConfigError(f"GPTQ version {version!r} is unknown; 'v1' or 'v2' is needed")
    if not 0 < damp_percent < 1:
        raise ConfigError(f"damp_percent is {damp_percent}; readers need 0 < damp_percent < 1")
    if fmt.activation != "none":
        raise ConfigError(f"GPTQ has no {fmt.activation} activations; use compressed-tensors")
    name = "gptq" if version == "v1" else "gptq_v2"
    # optimum 2.3 quantizes the names that start with this, its own guess being "model.layers". It
    # would pass over a packed lm_head, and transformers then makes up a random one.
    blocks = {"block_name_to_quantize": ""} if lm_head else {}
    return {
        "bits": fmt.bits,
        "group_size": fmt.group_size,
        "desc_act": False,
        "sym": fmt.symmetric,
        "lm_head": lm_head,
        "quant_method": "gptq",
        "method": "gptq",
        "checkpoint_format": name,
        "format": name,
        "pack_dtype": "int32",
        "dynamic": None if dynamic is None else {p: dict(o) for p, o in dynamic.items()},
        "true_sequential": True,
        "static_groups": True,
        "damp_percent": damp_percent,
        **blocks,
        "meta": {"quantizer": [f"bcquant:{__version__}"], **(meta or {})},
    }


def compressed_config(
    fmt: QuantFormat,
    ignore: Sequence[str] = ("lm_head",),
    overrides: Mapping[str, QuantFormat] | None = None,
) -> dict[str, Any]:
    """The dict of config.json["quantization_config"] for compressed-tensors.

    Args:
        fmt: activation "int8_token" makes it int-quantized (W8A8), "none" pack-quantized.
        ignore: Linear modules that stay float.
        overrides: module name -> the format that it has instead of `fmt`.
    Raises:
        ConfigError: an int8_token format is not 8-bit symmetric per row.
    """
    targets: dict[QuantFormat, list[str]] = {fmt: ["Linear"]}
    for module, other in (overrides or {}).items():
        if other != fmt:
            targets.setdefault(other, []).append(module)
    groups = {f"group_{i}": _config_group(f, names) for i, (f, names) in enumerate(targets.items())}
    return {
        "quant_method": "compressed-tensors",
        "format": groups["group_0"]["format"],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "version": COMPRESSED_TENSORS_VERSION,
        "config_groups": groups,
    }


def _config_group(fmt: QuantFormat, targets: list[str]) -> dict[str, Any]:
    is_w8a8 = fmt.activation == "int8_token"
    if is_w8a8 and (fmt.bits, fmt.group_size, fmt.symmetric) != (8, -1, True):
        raise ConfigError(
            f"int-quantized weights are 8-bit, symmetric, group_size -1; got {fmt.bits}-bit, "
            f"{'symmetric' if fmt.symmetric else 'asymmetric'}, group_size {fmt.group_size}"
        )
    layout = "int-quantized" if is_w8a8 else "pack-quantized"
    weights: dict[str, Any] = {
        "num_bits": fmt.bits,
        "type": "int",
        "symmetric": fmt.symmetric,
        "strategy": "channel" if fmt.group_size == -1 else "group",
        "group_size": None if fmt.group_size == -1 else fmt.group_size,
        "dynamic": False,
    }
    activations = {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
    }  # fmt: skip
    return {
        "targets": targets,
        "format": layout,
        "weights": weights,
        "input_activations": activations if is_w8a8 else None,
        "output_activations": None,
    }


def parse_quant_config(
    config: Mapping[str, Any], quantize_config: Mapping[str, Any] | None = None
) -> QuantSpec | None:
    """How a checkpoint says it is quantized; None = it does not, the weights are float.

    Args:
        config: config.json; its "quantization_config" is used if there.
        quantize_config: quantize_config.json, the only one that AutoGPTQ-era folders have.
    Raises:
        ConfigError: a method, format or setting that bcquant cannot read. CheckpointError: a value
            is of the wrong type, or the two files contradict each other.
    """
    inner = config.get("quantization_config", config.get("compression_config"))
    if inner is not None and not isinstance(inner, Mapping):
        raise CheckpointError(
            f"config.json: quantization_config is {kind_of(inner)}; a dict is needed"
        )
    specs = []
    for name, entry in (("config.json", inner), ("quantize_config.json", quantize_config)):
        if entry is not None:
            specs.append(_parse_one(entry, name))
    if len(specs) == 2 and specs[0] != specs[1]:
        raise CheckpointError(
            f"config.json says {_brief(specs[0])} but quantize_config.json says "
            f"{_brief(specs[1])}; delete the wrong one"
        )
    return specs[0] if specs else None


def _parse_one(entry: Mapping[str, Any], name: str) -> QuantSpec:
    method = entry.get("quant_method", entry.get("method", "gptq" if "bits" in entry else None))
    if method == "gptq":
        return _parse_gptq(entry, name)
    if method == "awq":
        return parse_awq(entry, name)
    if method == "compressed-tensors":
        return _parse_compressed(entry, name)
    raise ConfigError(
        f"{name}: quant_method {method!r} cannot be read; gptq, awq or compressed-tensors is needed"
    )


def _parse_gptq(entry: Mapping[str, Any], name: str) -> QuantSpec:
    stored = [entry[key] for key in ("checkpoint_format", "format") if entry.get(key) is not None]
    if len(set(map(str, stored))) > 1:
        raise CheckpointError(f"{name}: checkpoint_format {stored[0]!r} but format {stored[1]!r}")
    layout = stored[0] if stored else "gptq"
    if entry.get("is_marlin_format"):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        raise ConfigError(
            f"{name}: GPTQ format {layout!r} is laid out for one kernel and cannot be read; "
            "'gptq' or 'gptq_v2' is needed"
        )
    pack_dtype = entry.get("pack_dtype", "int32")
    if pack_dtype not in (None, "int32", "torch.int32"):
        raise ConfigError(f"{name}: pack_dtype {pack_dtype!r} cannot be read; int32 is needed")
    base = {
        "bits": field(entry, "bits", int, name),
        "group_size": field(entry, "group_size", int, name),  # readers' defaults differ
        "sym": field(entry, "sym", bool, name, default=True),
    }
    fmt = QuantFormat(base["bits"], base["group_size"], bool(base["sym"]))
    dynamic = _parse_dynamic(entry.get("dynamic"), base, name)
    lm_head = field(entry, "lm_head", bool, name, default=False)
    return QuantSpec("gptq", "v2" if layout == "gptq_v2" else "v1", fmt, lm_head, (), dynamic)


def _parse_dynamic(rules: Any, base: Mapping[str, Any], name: str) -> tuple[Override, ...]:
    if rules is None:
        return ()
    if not isinstance(rules, Mapping):
        raise CheckpointError(f"{name}: dynamic is {kind_of(rules)}; a dict is needed")
    found = []
    for rule, changes in rules.items():
        pattern = checked_pattern(rule[2:] if rule[:2] in ("-:", "+:") else rule, name)
        if rule.startswith("-:"):
            found.append(Override(pattern, None))
            continue
        if not isinstance(changes, Mapping):
            raise CheckpointError(
                f"{name}: dynamic[{rule!r}] is {kind_of(changes)}; a dict is needed"
            )
        bits, group_size, sym = (
            field(changes, key, type(base[key]), name, default=base[key]) for key in base
        )
        found.append(Override(pattern, QuantFormat(bits, group_size, bool(sym))))
    return tuple(found)


def _parse_compressed(entry: Mapping[str, Any], name: str) -> QuantSpec:
    for key in ("sparsity_config", "kv_cache_scheme"):
        value = entry.get(key)
        is_dense = isinstance(value, Mapping) and value.get("format") == "dense"
        if value and not is_dense:
            raise ConfigError(f"{name}: {key} cannot be read; weight quantization only is needed")
    if entry.get("transform_config"):
        raise ConfigError(
            f"{name}: transform_config cannot be read; a checkpoint without rotations is needed"
        )
    groups = entry.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError(
            f"{name}: config_groups is {kind_of(groups)}; a dict of groups is needed"
        )
    ignore = strings(entry.get("ignore") or [], f"{name}: ignore")
    layouts: set[str] = set()
    default: QuantFormat | None = None
    named: list[Override] = []
    for key, group in groups.items():
        where = f"{name}: config_groups[{key!r}]"
        if not isinstance(group, Mapping):
            raise CheckpointError(f"{where} is {kind_of(group)}; a dict is needed")
        layout = group.get("format") or entry.get("format")
        fmt = _parse_group(group, layout, where)
        layouts.add(str(layout))
        for target in strings(group.get("targets"), f"{where}.targets"):
            if target == "Linear":
                default = default or fmt
            else:
                named.append(Override(_target_pattern(target, where), fmt))
    if len(layouts) > 1:
        raise ConfigError(f"{name}: groups of {', '.join(sorted(layouts))} mixed cannot be read")
    if default is None:
        default = named[0].format if named else None
        named.append(Override("", None))
    if default is None:
        raise CheckpointError(f"{name}: config_groups name no target")
    for entry_name in ignore:
        _target_pattern(entry_name, f"{name}: ignore")
    lm_head = not any(is_ignored_by(entry_name, "lm_head") for entry_name in ignore)
    return QuantSpec("compressed-tensors", layouts.pop(), default, lm_head, ignore, tuple(named))


def _parse_group(group: Mapping[str, Any], layout: Any, where: str) -> QuantFormat:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if layout not in ("pack-quantized", "int-quantized"):
        raise ConfigError(
            f"{where}: format {layout!r} cannot be read; pack-quantized or int-quantized is needed"
        )
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: weights are {kind_of(weights)}; a quantized weight is needed")
    kind, strategy, size = (weights.get(key) for key in ("type", "strategy", "group_size"))
    if strategy is None and isinstance(size, int):
        strategy = "channel" if size == -1 else "group"
    if kind not in (None, "int") or strategy not in ("group", "channel"):
        raise ConfigError(
            f"{where}: weights of type {kind!r}, strategy {strategy!r} cannot be read; "
            "int per group or channel is needed"
        )
    if group.get("output_activations") is not None:
        raise ConfigError(f"{where}: output_activations cannot be read; none are needed")
    activation = "none"
    if inputs is not None:
        known = {"num_bits": 8, "strategy": "token", "dynamic": True}
        if not isinstance(inputs, Mapping) or any(inputs.get(k) != v for k, v in known.items()):
            raise ConfigError(
                f"{where}: input_activations are {inputs!r}; dynamic 8-bit per token is needed"
            )
        activation = "int8_token"
    group_size = -1 if strategy == "channel" else field(weights, "group_size", int, where)
    fmt = QuantFormat(
        field(weights, "num_bits", int, where), group_size,
        field(weights, "symmetric", bool, where, default=True), activation,
    )  # fmt: skip
    if layout == "int-quantized" and (fmt.bits, group_size, fmt.symmetric) != (8, -1, True):
        raise ConfigError(
            f"{where}: int-quantized weights are read only as 8-bit, symmetric, per channel"
        )
    return fmt


def _target_pattern(target: str, name: str) -> str:
    if target.startswith("re:"):
        return checked_pattern(target[3:], name)
    return f"{re.escape(target)}$"


def _brief(spec: QuantSpec) -> str:
    f = spec.format
    return f"{spec.method} {spec.version} {f.bits}-bit group_size {f.group_size} sym {f.symmetric}"
