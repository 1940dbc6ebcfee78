"""The shape of one InternLM decoder, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder; every InternLM version is a Llama in these terms.

    Attributes:
        architecture: class name in the HF config (``InternLMForCausalLM`` ...).
        vocab_size, hidden_size, intermediate_size, num_layers: widths and depth.
        num_heads, num_kv_heads, head_dim: query heads, key/value heads (fewer under GQA), width of a head.
        norm_epsilon: added to the mean square in RMSNorm.
        rope_theta: base of the rotary frequencies.
        max_position_embeddings: positions for which plain RoPE is exact; longer inputs are refused.
        qkv_bias, output_bias: whether q, k, v and o carry a bias.
        bos_token_id, pad_token_id: special ids, None where the model has none.
        eos_token_ids: ids that end a generation.
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

    @property
    def qkv_features(self) -> int:
        """Rows of the fused query, key, value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
