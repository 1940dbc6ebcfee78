"""Quantize and dequantize layers, and the integer GEMMs between them, against integers in numpy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_network import Net

from workbench.engine.semantics import quantization
from workbench.engine.semantics.operands import UnknownSemanticsError

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def numpy_int8(x: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(x / np.float32(scale)), -128, 127).astype(np.int64)


def test_quantize_rounds_half_to_even_and_saturates(net: Net) -> None:
    quantized = net.net.add_quantize(
        net.input("x", torch.float32, (6,)), net.constant(torch.tensor(0.5)), trt.DataType.INT8
    )
    run = net.done(quantized.get_output(0)).run({"x": torch.tensor([0.25, 0.75, -0.25, 100.0, -100.0, 1.0])})
    assert run["y0"].dtype == torch.int8
    assert run["y0"].tolist() == [0, 2, 0, 127, -128, 2]


def test_dequantize_per_tensor_channel_and_block(net: Net) -> None:
    q = torch.randint(-7, 8, (4, 6), dtype=torch.int8)
    channel, block = torch.rand(6), torch.rand(2, 6).half()
    outputs = [
        net.dequantize(net.constant(q), net.constant(torch.tensor(0.25))),
        net.dequantize(net.constant(q), net.constant(channel), 1),
        net.dequantize(net.int4(q), net.constant(block), to=trt.DataType.HALF),
    ]
    run = net.done(*outputs).run({})
    real = q.numpy().astype(np.float32)
    np.testing.assert_array_equal(run["y0"].numpy(), real * 0.25)
    np.testing.assert_array_equal(run["y1"].numpy(), real * channel.numpy())
    blocks = np.repeat(block.numpy(), 2, axis=0).astype(np.float32)
    np.testing.assert_array_equal(run["y2"].numpy(), (real * blocks).astype(np.float16))


@pytest.mark.parametrize("reshaped", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_times_int8_is_exact(reshaped: bool, per_channel: bool, net: Net) -> None:
    """Sums up to 127 * 127 * 2048 are odd numbers far beyond float32's 24 bits; an integer GEMM keeps them."""
    depth, out = 2048, 3
    w = torch.full((out, depth), 127, dtype=torch.int8)
    w[:, 0] = torch.tensor([126, 125, 124])
    scale = torch.tensor([0.5, 0.25, 1.0]) if per_channel else torch.tensor(0.5)
    x = torch.full((1, 2, depth), 127.0)
    x[0, 1] = torch.randint(-127, 128, (depth,)).float()
    one = net.constant(torch.tensor(1.0))
    q = net.net.add_quantize(net.input("x", torch.float32, (-1, 2, depth)), one, trt.DataType.INT8).get_output(0)
    weight = net.dequantize(
        net.constant(w if reshaped else w[None]), net.constant(scale), (0 if reshaped else 1) if per_channel else None
    )
    if reshaped:
        shuffle = net.net.add_shuffle(weight)
        shuffle.reshape_dims = (1, out, depth)
        weight = shuffle.get_output(0)
    interpreter = net.done(net.matmul(net.dequantize(q, one), weight, transpose=True))
    assert len(interpreter.integer_matmuls) == 1
    sums = x.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T
    expected = sums.astype(np.float32) * scale.numpy()
    np.testing.assert_array_equal(interpreter.run({"x": x})["y0"].numpy(), expected)


def test_activation_scale_times_weight_scale(net: Net) -> None:
    x, w, scale = torch.randn(1, 4, 32), torch.randint(-127, 128, (5, 32), dtype=torch.int8), torch.rand(5)
    input_scale = net.constant(torch.tensor(0.03))
    q = net.net.add_quantize(net.input("x", torch.float32, (1, 4, 32)), input_scale, trt.DataType.INT8).get_output(0)
    weight = net.dequantize(net.constant(w[None]), net.constant(scale), 1)
    result = net.done(net.matmul(net.dequantize(q, input_scale), weight, transpose=True)).run({"x": x})["y0"]
    sums = numpy_int8(x.numpy(), 0.03) @ w.numpy().astype(np.int64).T
    np.testing.assert_array_equal(result.numpy(), sums.astype(np.float32) * (np.float32(0.03) * scale.numpy()))


def test_scale_along_the_summed_axis_is_no_integer_gemm(net: Net) -> None:
    x, w, scale = torch.randn(4, 32), torch.randint(-127, 128, (32, 5), dtype=torch.int8), torch.rand(32)
    one = net.constant(torch.tensor(0.1))
    q = net.net.add_quantize(net.input("x", torch.float32, (4, 32)), one, trt.DataType.INT8).get_output(0)
    weight = net.dequantize(net.constant(w), net.constant(scale), 0)
    interpreter = net.done(net.matmul(net.dequantize(q, one), weight))
    assert interpreter.integer_matmuls == ()
    real = numpy_int8(x.numpy(), 0.1) * 0.1
    expected = real @ (w.numpy() * scale.numpy()[:, None].astype(np.float64))
    np.testing.assert_allclose(interpreter.run({"x": x})["y0"].numpy(), expected, rtol=1e-4, atol=1e-3)


def test_given_dequantized_activations_bypass_the_integers(net: Net) -> None:
    one = net.constant(torch.tensor(1.0))
    q = net.net.add_quantize(net.input("x", torch.float32, (1, 2)), one, trt.DataType.INT8).get_output(0)
    real = net.dequantize(q, one)
    real.name = "real"
    weight = net.dequantize(net.constant(torch.tensor([[1], [1]], dtype=torch.int8)), one)
    interpreter = net.done(net.matmul(real, weight))
    assert interpreter.run({"x": torch.tensor([[1.4, 2.4]])})["y0"].item() == 3.0
    assert interpreter.run({}, given={"real": torch.tensor([[1.25, 2.5]])})["y0"].item() == 3.75


def test_weight_only_rounds_the_weight_to_its_declared_dtype(net: Net) -> None:
    w, scale = torch.randint(-127, 128, (1, 5, 32), dtype=torch.int8), torch.rand(5)
    x = torch.randn(1, 4, 32).half()
    weight = net.dequantize(net.constant(w), net.constant(scale), 1, trt.DataType.HALF)
    result = net.done(net.matmul(net.input("x", torch.float16, (1, 4, 32)), weight, transpose=True)).run({"x": x})
    rounded = (w[0].numpy().astype(np.float32) * scale.numpy()[:, None]).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(result["y0"].double().numpy(), x.double().numpy() @ rounded.T, rtol=1e-3, atol=1e-3)


# ---- what is refused


@pytest.mark.parametrize(
    ("scale", "axis", "message"),
    [
        ((3,), 1, r"3 scales for axis 1 of \[2, 4\]"),
        ((4,), 2, r"4 scales for axis 2 of \[2, 4\]"),
        ((2, 4, 2), 0, r"scales \[2, 4, 2\] for \[2, 4\]"),
        ((2, 3), 0, r"scales \[2, 3\] do not divide \[2, 4\] into blocks"),
    ],
)
def test_scales_must_fit(scale: tuple[int, ...], axis: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantization.broadcast_scale(torch.ones(scale), torch.ones(2, 4), axis)


def test_quantization_to_another_type() -> None:
    with pytest.raises(UnknownSemanticsError, match="quantization to INT32 is not interpreted"):
        quantization.quantize(trt, SimpleNamespace(to_type=trt.DataType.INT32, axis=0))
