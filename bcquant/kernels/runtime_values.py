"""What goes into the runtime and comes out of it as values, and as the structs of runtime.h."""

from __future__ import annotations

from typing import NamedTuple

from bcquant.errors import KernelError
from bcquant.kernels.runtime_library import InfoStruct, OptionsStruct, PlanStruct

ACTIVATIONS = ("exact", "int8", "int8_token")  # bcq_precision by number
KV_TYPES = ("f32", "f16", "int8")  # bcq_kv_type by number


class ModelInfo(NamedTuple):
    """What a package says of its model.

    Attributes:
        activations: one of `ACTIVATIONS`, what computes by default.
        bos_id, pad_id: None = none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    eps: float
    is_alibi: bool
    ties_head: bool
    activations: str
    bos_id: int | None
    pad_id: int | None
    eos_ids: tuple[int, ...]


class RuntimeOptions(NamedTuple):
    """How a model computes.

    Attributes:
        num_threads: 1 .. 256; 0 = one for each big core.
        activations: one of `ACTIVATIONS`; None = as the package says.
        kv_type: of the caches, one of `KV_TYPES`.
        prefill_tokens: of a prompt that are computed at once, 1 .. 512; 0 = 128.
        budget_bytes: of a model and all its sessions; 0 = no limit.
        tier: of the kernels; None = the best of this CPU.
    """

    num_threads: int = 1
    activations: str | None = None
    kv_type: str = "f16"
    prefill_tokens: int = 0
    budget_bytes: int = 0
    tier: str | None = None


class MemoryPlan(NamedTuple):
    """Bytes of a model with one session, known before anything is loaded: `bcq_plan`."""

    weight_bytes: int
    table_bytes: int
    scratch_bytes: int
    kv_bytes: int
    total_bytes: int


def info_of(found: InfoStruct) -> ModelInfo:
    """A filled-in bcq_model_info as a value."""
    return ModelInfo(
        vocab_size=int(found.vocab_size),
        hidden_size=int(found.hidden_size),
        intermediate_size=int(found.intermediate_size),
        num_layers=int(found.num_layers),
        num_heads=int(found.num_heads),
        num_kv_heads=int(found.num_kv_heads),
        head_dim=int(found.head_dim),
        max_positions=int(found.max_positions),
        eps=float(found.eps),
        is_alibi=bool(found.is_alibi),
        ties_head=bool(found.ties_head),
        activations=ACTIVATIONS[found.activations],
        bos_id=None if found.bos < 0 else int(found.bos),
        pad_id=None if found.pad < 0 else int(found.pad),
        eos_ids=tuple(found.eos[: found.num_eos]),
    )


def plan_of(found: PlanStruct) -> MemoryPlan:
    """A filled-in bcq_plan as a value."""
    return MemoryPlan(*(int(getattr(found, name)) for name in MemoryPlan._fields))


def options_struct(options: RuntimeOptions) -> OptionsStruct:
    """Options as bcq_options. KernelError: a name that there is not; numbers are the library's."""
    for name, value, known in (
        ("activations", options.activations or ACTIVATIONS[0], ACTIVATIONS),
        ("kv_type", options.kv_type, KV_TYPES),
    ):
        if value not in known:
            raise KernelError(f"{name} is {value!r}; one of {', '.join(known)} is needed")
    activations = options.activations
    return OptionsStruct(
        options.num_threads,
        -1 if activations is None else ACTIVATIONS.index(activations),
        KV_TYPES.index(options.kv_type),
        options.prefill_tokens,
        options.budget_bytes,
        None if options.tier is None else options.tier.encode(),
    )
