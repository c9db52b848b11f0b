"""What a decoder is, in one frozen value; families differ only in how they fill it."""

from __future__ import annotations

from dataclasses import dataclass

from bcquant.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    kind: "linear" (positions divided by factor) or "llama3" (per-frequency; Llama 3.1 and later).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of a LLaMA-like decoder.

    Attributes:
        family: key of the architecture table (file name in bcquant/models).
        num_kv_heads: key/value heads; num_heads is a multiple of it (GQA).
        position: "rope" or "alibi".
        windows: sliding window per layer in tokens, None = full attention; length num_layers.
        norm_head: lm_head rows are L2-normalised before use (Baichuan 2).
        qk_norm: RMSNorm over head_dim on each query and key head (Qwen3).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float = 1e-6
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_head: bool = False
    windows: tuple[int | None, ...] = ()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers",
            "num_heads", "num_kv_heads", "head_dim", "max_positions",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise ConfigError(
                    f"model config: {name} is {value!r}; a positive integer is needed"
                )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model config: num_heads {self.num_heads} is not a multiple of "
                f"num_kv_heads {self.num_kv_heads}"
            )
        if self.position not in ("rope", "alibi"):
            raise ConfigError(
                f"model config: position {self.position!r}; 'rope' or 'alibi' is needed"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"model config: head_dim {self.head_dim} is odd; RoPE needs an even one"
            )
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.num_layers)
        if len(self.windows) != self.num_layers:
            raise ConfigError(
                f"model config: {len(self.windows)} windows for {self.num_layers} layers"
            )

    @property
    def q_size(self) -> int:
        """Rows of q_proj: num_heads * head_dim."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of k_proj and of v_proj: num_kv_heads * head_dim."""
        return self.num_kv_heads * self.head_dim
