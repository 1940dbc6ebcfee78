"""The shape of one InternLM decoder, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass

LINEAR, DYNAMIC = "linear", "dynamic"


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions reach further than a model was trained for.

    Attributes:
        kind: "linear" divides every position by ``factor`` (arXiv:2306.15595). "dynamic" leaves positions alone and
            raises the base with the length, beyond ``max_position_embeddings`` only: up to there it is plain RoPE.
        factor: from 1.
    """

    kind: str
    factor: float


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder; every InternLM version is a Llama in these terms.

    Attributes:
        architecture: class name in the HF config (``InternLMForCausalLM`` ...).
        vocab_size, hidden_size, intermediate_size, num_layers: widths and depth.
        num_heads, num_kv_heads, head_dim: query heads, key/value heads (fewer under GQA), width of a head.
        norm_epsilon: added to the mean square in RMSNorm.
        rope_theta: base of the rotary frequencies.
        max_position_embeddings: positions that the model takes; longer inputs are refused.
        qkv_bias, output_bias: whether q, k, v and o carry a bias.
        mlp_bias: whether gate, up and down do.
        bos_token_id, pad_token_id: special ids, None where the model has none.
        eos_token_ids: ids that end a generation.
        rope_scaling: how rotary positions are scaled; None for plain RoPE.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_theta: float
    max_position_embeddings: int
    qkv_bias: bool
    output_bias: bool
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rope_scaling: RopeScaling | None = None
    mlp_bias: bool = False

    @property
    def qkv_features(self) -> int:
        """Rows of the fused query, key, value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
