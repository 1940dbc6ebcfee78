"""The named tensors of a decoder: declared once, the same in every op set and for Hugging Face.

A tap is ``layers.N.SITE`` or one of the model-wide names. Comparing two models is a join of two tables by tap.
"""

from __future__ import annotations

LAYER_SITES: dict[str, str] = {
    "residual_pre": "residual stream entering the layer [batch, seq, hidden]",
    "attention_norm": "normalized input of qkv [batch, seq, hidden]",
    "attention.qkv": "output of the fused q, k, v projection [batch, seq, (heads + 2 kv_heads) head_dim]",
    "attention.key": "keys after RoPE [batch, kv_heads, seq, head_dim]",
    "attention.value": "values [batch, kv_heads, seq, head_dim]",
    "attention.context": "output of attention, input of o [batch, seq, heads head_dim]",
    "attention.o": "output of the o projection [batch, seq, hidden]",
    "residual_mid": "residual stream after attention [batch, seq, hidden]",
    "mlp_norm": "normalized input of gate and up [batch, seq, hidden]",
    "mlp.gate_up": "outputs of gate and up [batch, seq, 2 intermediate]",
    "mlp.act": "silu(gate) * up, input of down [batch, seq, intermediate]",
    "mlp.down": "output of the down projection [batch, seq, hidden]",
}

MODEL_TAPS: dict[str, str] = {
    "embedding": "token embeddings [batch, seq, hidden]",
    "residual_final": "residual stream after the last layer [batch, seq or 1, hidden]",
    "final_norm": "input of the LM head [batch, seq or 1, hidden]",
    "logits": "float32 logits [batch, seq or 1, vocab]",
}


def layer_tap(layer: int, site: str) -> str:
    """The tap's full name; ``site`` is a key of :data:`LAYER_SITES`."""
    return f"layers.{layer}.{site}"


def tap_names(num_layers: int) -> list[str]:
    """Every tap of a model, in the order in which a forward pass meets them."""
    layers = [layer_tap(layer, site) for layer in range(num_layers) for site in LAYER_SITES]
    return ["embedding", *layers, "residual_final", "final_norm", "logits"]


def split_tap(name: str) -> tuple[int | None, str]:
    """``layers.3.mlp.down`` -> ``(3, "mlp.down")``; a model-wide tap -> ``(None, name)``."""
    if not name.startswith("layers."):
        return None, name
    _, layer, site = name.split(".", 2)
    return int(layer), site
