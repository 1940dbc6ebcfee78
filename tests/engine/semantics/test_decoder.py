"""Rotary embedding, KV cache update and attention, against statements in numpy."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_network import Net
from torch import Tensor

from workbench.engine.interpreter import InterpreterError
from workbench.engine.semantics import decoder
from workbench.engine.semantics.operands import UnknownSemanticsError

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_embedding_turns_pairs(interleaved: bool, net: Net) -> None:
    angles = torch.rand(9, 4)
    x, positions = torch.randn(2, 3, 5, 8), torch.randint(0, 9, (2, 5))
    layer = net.net.add_rotary_embedding(
        net.input("x", torch.float32, (2, 3, 5, 8)),
        net.constant(angles.cos()),
        net.constant(angles.sin()),
        interleaved,
        0,
    )
    layer.set_input(3, net.input("positions", torch.int64, (2, 5)))
    result = net.done(layer.get_output(0)).run({"x": x, "positions": positions})["y0"].numpy()
    v = x.numpy()
    pairs = v[..., 0::2] + 1j * v[..., 1::2] if interleaved else v[..., :4] + 1j * v[..., 4:]
    turned = pairs * np.exp(1j * angles.numpy()[positions.numpy()])[:, None]
    halves = [turned.real, turned.imag]
    expected = np.stack(halves, -1).reshape(v.shape) if interleaved else np.concatenate(halves, -1)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def cache_network(net: Net) -> Any:
    cache = net.input("cache", torch.float16, (-1, 2, 6, 4))
    layer = net.net.add_kv_cache_update(
        cache,
        net.input("rows", torch.float16, (-1, 2, -1, 4)),
        net.input("start", torch.int32, (-1,)),
        trt.KVCacheMode.LINEAR,
    )
    layer.name = "cache 0"
    return layer


def test_ragged_cache_update(net: Net) -> None:
    interpreter = net.done(cache_network(net).get_output(0))
    cache, rows = torch.randn(2, 2, 6, 4).half(), torch.randn(2, 2, 3, 4).half()
    before = cache.clone()
    result = interpreter.run({"cache": cache, "rows": rows, "start": torch.tensor([0, 3], dtype=torch.int32)})["y0"]
    expected = before.numpy().copy()
    expected[0, :, 0:3], expected[1, :, 3:6] = rows[0].numpy(), rows[1].numpy()
    np.testing.assert_array_equal(result.numpy(), expected)
    assert torch.equal(cache, before), "the caller's cache was written to"


def test_cache_overflow_is_an_error(net: Net) -> None:
    interpreter = net.done(cache_network(net).get_output(0))
    feeds = {"cache": torch.zeros(1, 2, 6, 4).half(), "rows": torch.zeros(1, 2, 3, 4).half()}
    with pytest.raises(InterpreterError, match=r"'cache 0' .*writes cache rows 4\.\.6 of sequence 0, but it holds 6"):
        interpreter.run({**feeds, "start": torch.tensor([4], dtype=torch.int32)})


def test_packed_cache_update(net: Net) -> None:
    layer = net.net.add_kv_cache_update(
        net.input("cache", torch.float16, (2, 2, 6, 4)),
        net.input("rows", torch.float16, (-1, 2, 4)),
        net.input("start", torch.int32, (2,)),
        trt.KVCacheMode.LINEAR,
    )
    layer.update_form = trt.AttentionIOForm.PACKED_NHD
    layer.update_lengths = net.input("ends", torch.int32, (3,))
    rows = torch.randn(4, 2, 4).half()
    feeds = {"cache": torch.zeros(2, 2, 6, 4).half(), "rows": rows, "start": torch.tensor([5, 1], dtype=torch.int32)}
    result = net.done(layer.get_output(0)).run({**feeds, "ends": torch.tensor([0, 1, 4], dtype=torch.int32)})["y0"]
    expected = np.zeros((2, 2, 6, 4), np.float16)
    expected[0, :, 5] = rows[0].numpy()
    for token in range(3):
        expected[1, :, 1 + token] = rows[1 + token].numpy()
    np.testing.assert_array_equal(result.numpy(), expected)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, visible: Callable[[int, int, int], bool]) -> np.ndarray:
    """Attention row by row in float64; query head h reads key head h // group."""
    out = np.zeros((*q.shape[:3], v.shape[3]))
    group = q.shape[1] // k.shape[1]
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = [j for j in range(k.shape[2]) if visible(b, i, j)]
        keys, values = (t[b, h // group].double().numpy()[seen] for t in (k, v))
        weights = np.exp(keys @ q[b, h, i].double().numpy())
        out[b, h, i] = weights @ values / weights.sum()
    return out


def attention(net: Net, causal: str = "NONE") -> Any:
    shapes = {"q": (2, 4, 3, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 8)}
    operands = [net.input(name, torch.float32, shape) for name, shape in shapes.items()]
    softmax = trt.AttentionNormalizationOp.SOFTMAX
    layer = net.net.add_attention_v2(*operands, softmax, getattr(trt.CausalMaskKind, causal))
    layer.decomposable = True
    return layer


def attention_feeds() -> dict[str, Tensor]:
    return {"q": torch.randn(2, 4, 3, 8), "k": torch.randn(2, 2, 7, 8), "v": torch.randn(2, 2, 7, 8)}


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_with_mask_and_shared_key_heads(boolean: bool, net: Net) -> None:
    layer = attention(net)
    layer.mask = net.input("mask", torch.bool if boolean else torch.float32, (2, 1, 3, 7))
    feeds = attention_feeds()
    mask = torch.rand(2, 1, 3, 7) > 0.5
    mask[..., 0] = True
    feeds["mask"] = mask if boolean else torch.where(mask, 0.0, -torch.inf)
    result = net.done(layer.get_output(0)).run(feeds)["y0"].numpy()
    expected = reference_attention(feeds["q"], feeds["k"], feeds["v"], lambda b, i, j: bool(mask[b, 0, i, j]))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def last_key(causal: str, query: int, length: int) -> int:
    """The last key that a query of three may see among ``length`` keys."""
    return {"NONE": length, "LOWER_RIGHT": query + length - 3, "UPPER_LEFT": query}[causal]


@pytest.mark.parametrize("causal", ["NONE", "LOWER_RIGHT", "UPPER_LEFT"])
def test_attention_with_key_lengths(causal: str, net: Net) -> None:
    layer, lengths = attention(net, causal), [5, 7]
    layer.key_value_lengths = net.input("lengths", torch.int32, (2,))
    feeds = {**attention_feeds(), "lengths": torch.tensor(lengths, dtype=torch.int32)}
    expected = reference_attention(
        feeds["q"], feeds["k"], feeds["v"], lambda b, i, j: j < lengths[b] and j <= last_key(causal, i, lengths[b])
    )
    result = net.done(layer.get_output(0)).run(feeds)["y0"].numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_is_an_error(net: Net) -> None:
    layer = attention(net)
    layer.mask = net.input("mask", torch.bool, (2, 1, 3, 7))
    feeds = {**attention_feeds(), "mask": torch.zeros(2, 1, 3, 7, dtype=torch.bool)}
    with pytest.raises(InterpreterError, match="the result holds NaN, the operands hold none"):
        net.done(layer.get_output(0)).run(feeds)


# ---- what is refused


def attention_layer(**settings: Any) -> Any:
    """An attention layer that the interpreter knows but for ``settings``."""
    padded, none = trt.AttentionIOForm.PADDED_BHND, None
    known = {"query_form": padded, "key_value_form": padded, "norm_op": trt.AttentionNormalizationOp.SOFTMAX}
    optional = dict.fromkeys(("normalization_quantize_scale", "query_lengths", "mask", "key_value_lengths"), none)
    return SimpleNamespace(
        attention=SimpleNamespace(**{**known, **optional, "causal_kind": trt.CausalMaskKind.NONE, **settings})
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_form": "PACKED_NHD"}, "packed attention is not interpreted"),
        ({"key_value_form": "PACKED_NHD"}, "packed attention is not interpreted"),
        ({"norm_op": "NONE"}, "only attention with an unquantized softmax is interpreted"),
        ({"normalization_quantize_scale": "a tensor"}, "only attention with an unquantized softmax is interpreted"),
        ({"query_lengths": "a tensor"}, "query lengths of padded attention are not interpreted"),
    ],
)
def test_attention_that_is_not_interpreted(settings: dict[str, str], message: str) -> None:
    kinds = {"PACKED_NHD": trt.AttentionIOForm, "NONE": trt.AttentionNormalizationOp}
    values = {name: getattr(kinds[text], text) if text in kinds else text for name, text in settings.items()}
    with pytest.raises(UnknownSemanticsError, match=message):
        decoder.attention_input(trt, attention_layer(**values))


def test_heads_that_cannot_be_shared() -> None:
    attend = decoder.attention_input(trt, attention_layer())
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        attend([torch.ones(1, 4, 2, 8), torch.ones(1, 3, 5, 8), torch.ones(1, 3, 5, 8)])
