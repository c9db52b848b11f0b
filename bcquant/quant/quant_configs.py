"""The quantization part of config.json: written as FORMATS.md says, read as others wrote it.

`gptq_config` and `compressed_config` build the dicts of bcquant's own checkpoints;
`parse_quant_config` turns any supported dict into a `QuantSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bcquant import __version__
from bcquant.errors import CheckpointError, ConfigError
from bcquant.spec.quant_format import QuantFormat

COMPRESSED_TENSORS_VERSION = "0.20.0"  # the release whose readers judged our files


@dataclass(frozen=True)
class Override:
    """What modules whose name starts with a match of `pattern` use; format None = not quantized."""

    pattern: str
    format: QuantFormat | None


@dataclass(frozen=True)
class QuantSpec:
    """How a checkpoint is quantized.

    Attributes:
        method: "gptq" or "compressed-tensors".
        version: "v1" or "v2" for gptq; "pack-quantized" or "int-quantized" for compressed-tensors.
        format: of every quantized module that no override names.
        lm_head: the output layer is quantized too.
        ignore: module names that stay float ("re:" marks a pattern), as the config spells them.
        dynamic: overrides, the first match wins.
    """

    method: str
    version: str
    format: QuantFormat
    lm_head: bool = False
    ignore: tuple[str, ...] = ()
    dynamic: tuple[Override, ...] = ()

    def format_of(self, module: str) -> QuantFormat | None:
        """Format of a module by its name in the checkpoint; None = the config leaves it float."""
        if any(_is_ignored_by(entry, module) for entry in self.ignore):
            return None
        if module.rpartition(".")[2] == "lm_head" and not self.lm_head:
            return None
        for override in self.dynamic:
            if re.match(override.pattern, module):
                return override.format
        return self.format


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


def compressed_config(fmt: QuantFormat, ignore: Sequence[str] = ("lm_head",)) -> dict[str, Any]:
    """The dict of config.json["quantization_config"] for compressed-tensors.

    Args:
        fmt: activation "int8_token" makes it int-quantized (W8A8), "none" pack-quantized.
        ignore: Linear modules that stay float.
    Raises:
        ConfigError: an int8_token format is not 8-bit symmetric per row.
    """
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
    group = {
        "targets": ["Linear"],
        "format": layout,
        "weights": weights,
        "input_activations": activations if is_w8a8 else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "version": COMPRESSED_TENSORS_VERSION,
        "config_groups": {"group_0": group},
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
            f"config.json: quantization_config is {_kind(inner)}; a dict is needed"
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
    if method == "compressed-tensors":
        return _parse_compressed(entry, name)
    raise ConfigError(
        f"{name}: quant_method {method!r} cannot be read; gptq or compressed-tensors is needed"
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
        "bits": _get(entry, "bits", int, name),
        "group_size": _get(entry, "group_size", int, name),  # readers' defaults differ
        "sym": _get(entry, "sym", bool, name, default=True),
    }
    fmt = QuantFormat(base["bits"], base["group_size"], bool(base["sym"]))
    dynamic = _parse_dynamic(entry.get("dynamic"), base, name)
    lm_head = _get(entry, "lm_head", bool, name, default=False)
    return QuantSpec("gptq", "v2" if layout == "gptq_v2" else "v1", fmt, lm_head, (), dynamic)


def _parse_dynamic(rules: Any, base: Mapping[str, Any], name: str) -> tuple[Override, ...]:
    if rules is None:
        return ()
    if not isinstance(rules, Mapping):
        raise CheckpointError(f"{name}: dynamic is {_kind(rules)}; a dict is needed")
    found = []
    for rule, changes in rules.items():
        pattern = _pattern(rule[2:] if rule[:2] in ("-:", "+:") else rule, name)
        if rule.startswith("-:"):
            found.append(Override(pattern, None))
            continue
        if not isinstance(changes, Mapping):
            raise CheckpointError(
                f"{name}: dynamic[{rule!r}] is {_kind(changes)}; a dict is needed"
            )
        bits, group_size, sym = (
            _get(changes, key, type(base[key]), name, default=base[key]) for key in base
        )
        found.append(Override(pattern, QuantFormat(bits, group_size, bool(sym))))
    return tuple(found)


def _parse_compressed(entry: Mapping[str, Any], name: str) -> QuantSpec:
    for key in ("sparsity_config", "kv_cache_scheme"):
        value = entry.get(key)
        is_dense = isinstance(value, Mapping) and value.get("format") == "dense"
        if value and not is_dense:
            raise ConfigError(f"{name}: {key} cannot be read; weight quantization only is needed")
    groups = entry.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError(
            f"{name}: config_groups is {_kind(groups)}; a dict of groups is needed"
        )
    ignore = _strings(entry.get("ignore") or [], f"{name}: ignore")
    layouts: set[str] = set()
    default: QuantFormat | None = None
    named: list[Override] = []
    for key, group in groups.items():
        where = f"{name}: config_groups[{key!r}]"
        if not isinstance(group, Mapping):
            raise CheckpointError(f"{where} is {_kind(group)}; a dict is needed")
        layout = group.get("format") or entry.get("format")
        fmt = _parse_group(group, layout, where)
        layouts.add(str(layout))
        for target in _strings(group.get("targets"), f"{where}.targets"):
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
    lm_head = not any(_is_ignored_by(entry_name, "lm_head") for entry_name in ignore)
    return QuantSpec("compressed-tensors", layouts.pop(), default, lm_head, ignore, tuple(named))


def _parse_group(group: Mapping[str, Any], layout: Any, where: str) -> QuantFormat:
    weights, inputs = group.get("weights"), group.get("input_activations")
    if layout not in ("pack-quantized", "int-quantized"):
        raise ConfigError(
            f"{where}: format {layout!r} cannot be read; pack-quantized or int-quantized is needed"
        )
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: weights are {_kind(weights)}; a quantized weight is needed")
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
    group_size = -1 if strategy == "channel" else _get(weights, "group_size", int, where)
    fmt = QuantFormat(
        _get(weights, "num_bits", int, where), group_size,
        _get(weights, "symmetric", bool, where, default=True), activation,
    )  # fmt: skip
    if layout == "int-quantized" and (fmt.bits, group_size, fmt.symmetric) != (8, -1, True):
        raise ConfigError(
            f"{where}: int-quantized weights are read only as 8-bit, symmetric, per channel"
        )
    return fmt


def _get(entry: Mapping[str, Any], key: str, kind: type, name: str, default: Any = None) -> Any:
    value = entry.get(key)
    if value is None:
        value = default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{name}: {key} is {value!r}; {kind.__name__} is needed")
    return value


def _strings(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise CheckpointError(f"{where} is {_kind(values)}; a list of names is needed")
    return tuple(values)


def _pattern(pattern: str, name: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{name}: pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    return pattern


def _target_pattern(target: str, name: str) -> str:
    if target.startswith("re:"):
        return _pattern(target[3:], name)
    return f"{re.escape(target)}$"


def _is_ignored_by(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry[3:], module) is not None
    return entry == module


def _kind(value: Any) -> str:
    return "absent" if value is None else f"a {type(value).__name__}"


def _brief(spec: QuantSpec) -> str:
    f = spec.format
    return f"{spec.method} {spec.version} {f.bits}-bit group_size {f.group_size} sym {f.symmetric}"
