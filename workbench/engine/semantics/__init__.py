"""What each TensorRT layer computes, in torch: one small factory per layer kind.

A factory reads a layer's attributes once and returns an operation on tensors. Every statement follows NVIDIA's
documentation of the layer, not observed kernels. Half types are computed in float32; the caller rounds the result to
the declared dtype. Knows nothing about networks: who feeds whom is :mod:`workbench.engine.interpreter`.
"""

from __future__ import annotations

from typing import Any

from workbench.engine.semantics import arithmetic, decoder, places, quantization
from workbench.engine.semantics.operands import Factory, Operation, UnknownSemanticsError

# The Python class that reveals the attributes of a layer which the network hands out as a bare ILayer.
LAYER_CLASSES: dict[str, str] = {
    "ACTIVATION": "IActivationLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "ATTENTION_OUTPUT": "IAttentionOutputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONSTANT": "IConstantLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "DIST_COLLECTIVE": "IDistCollectiveLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "FILL": "IFillLayer",
    "GATHER": "IGatherLayer",
    "IDENTITY": "IIdentityLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "QUANTIZE": "IQuantizeLayer",
    "REDUCE": "IReduceLayer",
    "ROTARY_EMBEDDING": "IRotaryEmbeddingLayer",
    "SELECT": "ISelectLayer",
    "SHAPE": "IShapeLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "SQUEEZE": "ISqueezeLayer",
    "UNARY": "IUnaryLayer",
    "UNSQUEEZE": "IUnsqueezeLayer",
}


def layer_kind(trt: Any, layer: Any) -> str:
    """The name of a layer's ``trt.LayerType``; activations shadow ``.type`` with their own."""
    return str(trt.ILayer.type.__get__(layer).name)


def reveal(trt: Any, layer: Any) -> Any:
    """``layer`` as an object of its own class, with that class's attributes.

    Raises:
        UnknownSemanticsError: the layer's kind is not interpreted.
    """
    kind = layer_kind(trt, layer)
    if kind not in LAYER_CLASSES:
        raise UnknownSemanticsError(f"layer kind {kind} is not interpreted; known: {', '.join(sorted(LAYER_CLASSES))}")
    wanted = getattr(trt, LAYER_CLASSES[kind])
    if not isinstance(layer, wanted):
        layer.__class__ = wanted
    return layer


def operation(trt: Any, layer: Any) -> Operation:
    """What a revealed layer computes from its operands, in the order of the layer's inputs.

    Raises:
        UnknownSemanticsError: a setting of the layer is not interpreted.
    """
    return _FACTORIES[layer_kind(trt, layer)](trt, layer)


_FACTORIES: dict[str, Factory] = {
    "ACTIVATION": arithmetic.activation,
    "ATTENTION_INPUT": decoder.attention_input,
    "ATTENTION_OUTPUT": arithmetic.identity,
    "CAST": arithmetic.cast,
    "CONCATENATION": places.concatenation,
    "DEQUANTIZE": quantization.dequantize,
    "ELEMENTWISE": arithmetic.elementwise,
    "FILL": places.fill,
    "GATHER": places.gather,
    "IDENTITY": arithmetic.identity,
    "KV_CACHE_UPDATE": decoder.kv_cache_update,
    "MATRIX_MULTIPLY": arithmetic.matrix_multiply,
    "QUANTIZE": quantization.quantize,
    "REDUCE": arithmetic.reduce,
    "ROTARY_EMBEDDING": decoder.rotary_embedding,
    "SELECT": arithmetic.select,
    "SHAPE": places.shape,
    "SHUFFLE": places.shuffle,
    "SLICE": places.slice,
    "SOFTMAX": arithmetic.softmax,
    "SQUEEZE": places.squeeze,
    "UNARY": arithmetic.unary,
    "UNSQUEEZE": places.unsqueeze,
}
