"""Hugging Face's own Llama, fed with our weights: the reference that every InternLM result is compared with.

Every InternLM is a Llama in other names, some with biases, so no remote code is needed or run. Knows nothing about
recipes or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.backends.torch_ops import dequantize_int4
from workbench.errors import CheckpointError, LimitError
from workbench.model.config import LINEAR, ModelConfig
from workbench.model.taps import layer_tap
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LayerWeights, LinearWeight, ModelWeights

TapSink = Callable[[str, Tensor], None]


class HFReference:
    """``LlamaForCausalLM`` with eager attention, on one device, in one dtype.

    In float64 the places where Hugging Face computes in float32 whatever the dtype (norms, rotary tables, softmax) are
    widened too, so that what remains of a difference is no rounding.
    """

    def __init__(self, model: LlamaForCausalLM, config: ModelConfig, dtype: torch.dtype) -> None:
        self.model = model
        self.config = config
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.model.device)

    @classmethod
    def open(
        cls, model_dir: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> HFReference:
        """The model of an HF checkpoint's folder.

        Raises:
            CheckpointError: the folder is not an InternLM checkpoint that can be read.
        """
        from workbench.checkpoint.huggingface import HFCheckpoint

        checkpoint = HFCheckpoint.open(model_dir)
        return cls.from_weights(checkpoint.config, checkpoint.weights(dtype), dtype, device)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: ModelWeights, dtype: torch.dtype, device: str | torch.device = "cpu"
    ) -> HFReference:
        """The model of weights in memory; weight-only integers are multiplied out, so HF runs exactly what was stored.

        Raises:
            CheckpointError: the weights are one rank's part, or need quantized activations, which HF cannot run.
        """
        hf_config = llama_config(config, widen=dtype == torch.float64)
        with torch.device("meta"):
            model: Any = LlamaForCausalLM(hf_config)
        state = {name: tensor.to(device) for name, tensor in state_tensors(config, weights, dtype)}
        model.load_state_dict(state, strict=True, assign=True)
        model.model.rotary_emb = LlamaRotaryEmbedding(hf_config).to(device)
        if dtype == torch.float64:
            _widen(model, config)
        generation: Any = GenerationConfig
        model.generation_config = generation(
            do_sample=False, eos_token_id=list(config.eos_token_ids) or None, pad_token_id=_pad_id(config)
        )
        return cls(model.eval().requires_grad_(False), config, dtype)

    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """Logits of every position: ``[batch, seq] -> [batch, seq, vocab]`` float32 (float64 in float64).

        Args:
            ids: token ids, int64.
            on_tap: called with each tap of :mod:`workbench.model.taps`, in the order of a forward pass.
        """
        _check_ids(ids, self.config)
        cache = _TapCache(on_tap)
        with torch.inference_mode(), _tap_hooks(self.model, on_tap):
            logits: Tensor = self.model(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True).logits
            logits = logits if self.dtype == torch.float64 else logits.float()
            if on_tap is not None:
                on_tap("logits", logits)
        return logits

    def generate(self, prompts: list[list[int]], max_output_len: int) -> list[list[int]]:
        """Greedy ``generate`` of Hugging Face, one prompt at a time, so that padding plays no part.

        Returns:
            The new ids of each prompt; the end-of-sequence id is left out.
        """
        return [self._generate_one(prompt, max_output_len) for prompt in prompts]

    def _generate_one(self, prompt: list[int], max_output_len: int) -> list[int]:
        ids = torch.tensor([prompt], dtype=torch.int64, device=self.device)
        _check_ids(ids, self.config)
        model: Any = self.model
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_output_len)
        new: list[int] = output[0, len(prompt) :].tolist()
        return new[:-1] if new and new[-1] in self.config.eos_token_ids else new


def llama_config(config: ModelConfig, *, widen: bool = False) -> LlamaConfig:
    """The Hugging Face configuration of the same decoder; ``widen`` picks the attention that stays in float64."""
    hf_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters=_rope_parameters(config),
        max_position_embeddings=config.max_position_embeddings,
        attention_bias=config.qkv_bias or config.output_bias,
        mlp_bias=config.mlp_bias,
        tie_word_embeddings=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=list(config.eos_token_ids) or None,
        pad_token_id=None,
    )
    # Eager attention takes its softmax in float32 even from float64; torch's own attention does not.
    hf_config._attn_implementation = "sdpa" if widen else "eager"
    return hf_config


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    scaled = {"rope_type": "default"} if scaling is None else {"rope_type": scaling.kind, "factor": scaling.factor}
    return {**scaled, "rope_theta": config.rope_theta}


def state_tensors(config: ModelConfig, weights: ModelWeights, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Our weights under Hugging Face's Llama names, one after the other, the fused projections taken apart as views."""
    if weights.embedding is None or weights.final_norm is None or weights.lm_head is None:
        raise CheckpointError("these weights are one pipeline stage's part", fix="give the weights of a whole model")
    yield "model.embed_tokens.weight", weights.embedding.to(dtype)
    yield "model.norm.weight", weights.final_norm.to(dtype)
    yield "lm_head.weight", _dense("lm_head", weights.lm_head, dtype).weight
    for index, layer in enumerate(weights.layers):
        for name, tensor in _layer_state(config, layer, index, dtype):
            yield f"model.layers.{index}.{name}", tensor


def _layer_state(
    config: ModelConfig, layer: LayerWeights, index: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    yield "input_layernorm.weight", layer.attention_norm.to(dtype)
    yield "post_attention_layernorm.weight", layer.mlp_norm.to(dtype)
    qkv = _dense(f"layers.{index}.attention.qkv", layer.qkv, dtype)
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    projections = dict(zip(("q_proj", "k_proj", "v_proj"), _split(qkv, sizes), strict=True))
    projections["o_proj"] = _dense(f"layers.{index}.attention.o", layer.o, dtype)
    for name, linear in projections.items():
        yield f"self_attn.{name}.weight", linear.weight
        if config.qkv_bias or config.output_bias:
            # Llama has one switch for all four biases: a projection without one gets zeros.
            yield f"self_attn.{name}.bias", _bias_or_zeros(linear)
    gate_up = _dense(f"layers.{index}.mlp.gate_up", layer.gate_up, dtype)
    gate, up = _split(gate_up, [config.intermediate_size] * 2)
    down = _dense(f"layers.{index}.mlp.down", layer.down, dtype)
    for name, linear in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
        yield f"mlp.{name}.weight", linear.weight
        if config.mlp_bias:
            yield f"mlp.{name}.bias", _bias_or_zeros(linear)


def _dense(name: str, linear: LinearWeight, dtype: torch.dtype) -> DenseWeight:
    """A linear layer multiplied out to ``dtype``."""
    bias = None if linear.bias is None else linear.bias.to(dtype)
    match linear:
        case DenseWeight():
            return DenseWeight(linear.weight.to(dtype), bias)
        case Int8Weight():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            return DenseWeight((linear.weight.to(wide) * linear.weight_scale.to(wide)[:, None]).to(dtype), bias)
        case Int4GroupWeight():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            return DenseWeight(dequantize_int4(linear, wide).to(dtype), bias)
    raise CheckpointError(
        f"{name} is a {type(linear).__name__}, whose activations are quantized; Hugging Face cannot run it",
        fix="compare with the original model instead",
    )


def _split(linear: DenseWeight, sizes: list[int]) -> list[DenseWeight]:
    biases = [None] * len(sizes) if linear.bias is None else torch.split(linear.bias, sizes)
    return [DenseWeight(weight, bias) for weight, bias in zip(torch.split(linear.weight, sizes), biases, strict=True)]


def _bias_or_zeros(linear: DenseWeight) -> Tensor:
    return linear.weight.new_zeros(linear.weight.shape[0]) if linear.bias is None else linear.bias


def _pad_id(config: ModelConfig) -> int:
    if config.pad_token_id is not None:
        return config.pad_token_id
    return config.eos_token_ids[0] if config.eos_token_ids else 0


def _check_ids(ids: Tensor, config: ModelConfig) -> None:
    if ids.shape[1] > config.max_position_embeddings:
        raise LimitError(
            f"the sequence has {ids.shape[1]} tokens",
            allowed=f"up to {config.max_position_embeddings}, the model's positions",
            fix="give a shorter one",
        )
    if ids.shape[1] == 0:
        raise LimitError("the sequence is empty", allowed="one token or more", fix="give a text")


# ---- taps: Hugging Face's modules speak under our names


class _TapCache(DynamicCache):
    """A cache that offers each layer's new keys (after RoPE) and values on their way in."""

    def __init__(self, on_tap: TapSink | None) -> None:
        super().__init__()
        self.on_tap = on_tap

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.on_tap is not None:
            self.on_tap(layer_tap(layer_idx, "attention.key"), key_states)
            self.on_tap(layer_tap(layer_idx, "attention.value"), value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class _Hooks:
    """Forward hooks that offer tensors to ``on_tap``, and their removal."""

    def __init__(self, on_tap: TapSink) -> None:
        self.on_tap = on_tap
        self.handles: list[Any] = []

    def input(self, module: nn.Module, tap: str) -> None:
        self.handles.append(module.register_forward_pre_hook(lambda _module, args: self.on_tap(tap, args[0])))

    def output(self, module: nn.Module, tap: str) -> None:
        self.handles.append(module.register_forward_hook(lambda _module, _args, out: self.on_tap(tap, out)))

    def outputs(self, modules: list[nn.Module], tap: str) -> None:
        """The outputs of ``modules``, which run in this order, as one concatenated tensor."""
        parts: list[Tensor] = []

        def collect(_module: nn.Module, _args: Any, out: Tensor) -> None:
            parts.append(out)
            if len(parts) == len(modules):
                self.on_tap(tap, torch.cat(parts, dim=-1))
                parts.clear()

        self.handles.extend(module.register_forward_hook(collect) for module in modules)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@contextmanager
def _tap_hooks(model: LlamaForCausalLM, on_tap: TapSink | None) -> Iterator[None]:
    if on_tap is None:
        yield
        return
    hooks = _Hooks(on_tap)
    decoder = model.model
    hooks.output(decoder.embed_tokens, "embedding")
    for index, layer in enumerate(decoder.layers):
        _layer_hooks(hooks, layer, index)
    hooks.input(decoder.norm, "residual_final")
    hooks.output(decoder.norm, "final_norm")
    try:
        yield
    finally:
        hooks.remove()


def _layer_hooks(hooks: _Hooks, layer: Any, index: int) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    hooks.input(layer.input_layernorm, layer_tap(index, "residual_pre"))
    hooks.output(layer.input_layernorm, layer_tap(index, "attention_norm"))
    hooks.outputs([attention.q_proj, attention.k_proj, attention.v_proj], layer_tap(index, "attention.qkv"))
    hooks.input(attention.o_proj, layer_tap(index, "attention.context"))
    hooks.output(attention.o_proj, layer_tap(index, "attention.o"))
    hooks.input(layer.post_attention_layernorm, layer_tap(index, "residual_mid"))
    hooks.output(layer.post_attention_layernorm, layer_tap(index, "mlp_norm"))
    hooks.outputs([mlp.gate_proj, mlp.up_proj], layer_tap(index, "mlp.gate_up"))
    hooks.input(mlp.down_proj, layer_tap(index, "mlp.act"))
    hooks.output(mlp.down_proj, layer_tap(index, "mlp.down"))


# ---- float64


class _WideNorm(nn.Module):
    """RMSNorm (arXiv:1910.07467) in the input's own dtype."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.epsilon)


class _WideRotary(nn.Module):
    """cos and sin of RoPE in float64, each ``[batch, seq, head_dim]``."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        frequencies = config.rope_theta**-exponents / _position_divisor(config)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None].double() * self.frequencies).repeat(1, 1, 2)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _position_divisor(config: ModelConfig) -> float:
    """By what linear scaling divides positions; dynamic scaling changes nothing up to the model's positions."""
    return config.rope_scaling.factor if config.rope_scaling is not None and config.rope_scaling.kind == LINEAR else 1.0


def _widen(model: LlamaForCausalLM, config: ModelConfig) -> None:
    decoder = model.model
    decoder.rotary_emb = _WideRotary(config).to(model.device)
    decoder.norm = _WideNorm(decoder.norm.weight, config.norm_epsilon)
    for layer in decoder.layers:
        layer.input_layernorm = _WideNorm(layer.input_layernorm.weight, config.norm_epsilon)
        layer.post_attention_layernorm = _WideNorm(layer.post_attention_layernorm.weight, config.norm_epsilon)
