"""Layers that compute element by element, reduce, or multiply, against numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_network import Net, unary_case

from workbench.engine.interpreter import InterpreterError
from workbench.engine.semantics import arithmetic
from workbench.engine.semantics.operands import UnknownSemanticsError, operand, torch_dtype

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SUM", lambda a, b: a + b),
        ("PROD", lambda a, b: a * b),
        ("MAX", np.maximum),
        ("MIN", np.minimum),
        ("SUB", lambda a, b: a - b),
        ("DIV", lambda a, b: np.trunc(a / b) if a.dtype.kind == "i" else a / b),
        ("FLOOR_DIV", lambda a, b: np.floor(a / b)),
        ("EQUAL", lambda a, b: a == b),
        ("GREATER", lambda a, b: a > b),
        ("LESS", lambda a, b: a < b),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_elementwise(name: str, expected: Any, dtype: torch.dtype, net: Net) -> None:
    x, y = torch.tensor([[7, -7, 3], [2, 5, -1]], dtype=dtype), torch.tensor([[2, 2, 3]], dtype=dtype)
    output = net.elementwise(net.input("x", dtype, (2, 3)), net.input("y", dtype, (1, 3)), name)
    result = net.done(output).run({"x": x, "y": y})["y0"]
    np.testing.assert_allclose(result.numpy(), expected(x.numpy(), y.numpy()).astype(result.numpy().dtype), rtol=1e-6)
    assert result.dtype == (torch.bool if name in ("EQUAL", "GREATER", "LESS") else dtype)


def test_power_and_logic(net: Net) -> None:
    x, flag = net.input("x", torch.float32, (3,)), net.input("flag", torch.bool, (3,))
    other = net.constant(torch.tensor([True, True, False]))
    logic = [net.elementwise(flag, other, name) for name in ("AND", "OR", "XOR")]
    power = net.elementwise(x, net.constant(torch.tensor([2.0])), "POW")
    run = net.done(power, *logic).run({"x": torch.tensor([1.0, -2.0, 3.0]), "flag": torch.tensor([True, False, False])})
    assert run["y0"].tolist() == [1.0, 4.0, 9.0]
    assert run["y1"].tolist() == [True, False, False]
    assert run["y2"].tolist() == [True, True, False]
    assert run["y3"].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SQRT", math.sqrt),
        ("RECIP", lambda v: 1 / v),
        ("ABS", abs),
        ("NEG", lambda v: -v),
        ("EXP", math.exp),
        ("LOG", math.log),
        ("SIN", math.sin),
        ("COS", math.cos),
        ("ERF", math.erf),
        ("FLOOR", math.floor),
        ("CEIL", math.ceil),
        ("ROUND", round),
    ],
)
def test_unary(name: str, expected: Callable[[float], float]) -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 0.3])
    result = unary_case(lambda net, t: net.net.add_unary(t, getattr(trt.UnaryOperation, name)).get_output(0), x)
    torch.testing.assert_close(result, torch.tensor([float(expected(v)) for v in x.tolist()]))


def test_not() -> None:
    result = unary_case(
        lambda n, t: n.net.add_unary(t, trt.UnaryOperation.NOT).get_output(0), torch.tensor([True, False])
    )
    assert result.tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SIGMOID", lambda v: 1 / (1 + math.exp(-v))),
        ("RELU", lambda v: max(v, 0.0)),
        ("TANH", math.tanh),
        ("GELU_ERF", lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))),
        ("GELU_TANH", lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))),
    ],
)
def test_activation(name: str, expected: Callable[[float], float]) -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 1.5])
    result = unary_case(lambda n, t: n.net.add_activation(t, getattr(trt.ActivationType, name)).get_output(0), x)
    torch.testing.assert_close(result, torch.tensor([expected(v) for v in x.tolist()]))


def test_cast_truncates_and_identity_keeps(net: Net) -> None:
    x = net.input("x", torch.float32, (3,))
    outputs = [net.net.add_cast(x, trt.DataType.INT32).get_output(0), net.net.add_identity(x).get_output(0)]
    value = torch.tensor([1.9, -1.9, 1.00048828125])
    run = net.done(*outputs, net.net.add_cast(x, trt.DataType.HALF).get_output(0)).run({"x": value})
    assert run["y0"].tolist() == [1, -1, 1]
    assert torch.equal(run["y1"], value)
    assert run["y2"].numpy().tolist() == value.numpy().astype(np.float16).tolist()


def test_select(net: Net) -> None:
    condition, x, y = (
        net.input(n, d, (3,)) for n, d in (("c", torch.bool), ("x", torch.float32), ("z", torch.float32))
    )
    feeds = {"c": torch.tensor([True, False, True]), "x": torch.ones(3), "z": torch.zeros(3)}
    assert net.done(net.net.add_select(condition, x, y).get_output(0)).run(feeds)["y0"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("name", "expected"), [("AVG", np.mean), ("SUM", np.sum), ("MAX", np.max), ("MIN", np.min)])
@pytest.mark.parametrize("keep", [True, False])
def test_reduce(name: str, expected: Any, keep: bool) -> None:
    x = torch.randn(2, 3, 4)
    operation = getattr(trt.ReduceOperation, name)
    result = unary_case(lambda net, t: net.net.add_reduce(t, operation, 0b101, keep).get_output(0), x)
    np.testing.assert_allclose(result.numpy(), expected(x.numpy(), axis=(0, 2), keepdims=keep), rtol=1e-5)


def test_softmax() -> None:
    def add(net: Net, x: Any) -> Any:
        layer = net.net.add_softmax(x)
        layer.axes = 1 << 1
        return layer.get_output(0)

    x = torch.randn(2, 5, 3)
    exponents = np.exp(x.numpy().astype(np.float64))
    np.testing.assert_allclose(unary_case(add, x).numpy(), exponents / exponents.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "registered"),
    [
        (torch.float32, True),
        (torch.float32, False),
        (torch.float16, True),
        (torch.float16, False),
        (torch.bfloat16, True),  # TensorRT does not give it back: see test_unreadable_constant
    ],
)
def test_matmul_sums_in_float32_and_rounds_once(dtype: torch.dtype, registered: bool, net: Net) -> None:
    x, w = torch.randn(2, 3, 64).to(dtype), torch.randn(1, 5, 64).to(dtype)
    output = net.matmul(net.input("x", dtype, (-1, 3, 64)), net.constant(w, registered=registered), transpose=True)
    result = net.done(output).run({"x": x})["y0"]
    exact = x.double() @ w.double().mT
    assert result.dtype == dtype
    torch.testing.assert_close(result, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_matmul_broadcasts_batches(net: Net) -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    output = net.matmul(net.input("x", torch.float32, (2, 3, 4)), net.input("y", torch.float32, (2, 4, 5)))
    expected = np.stack([a @ b for a, b in zip(x.numpy(), y.numpy(), strict=True)])
    np.testing.assert_allclose(net.done(output).run({"x": x, "y": y})["y0"].numpy(), expected, rtol=1e-5, atol=1e-6)


# ---- what is refused


def test_operands_of_two_dtypes() -> None:
    # TensorRT itself refuses to state the result of such a layer; a parser may still have made one.
    inputs = [SimpleNamespace(dtype=trt.DataType.FLOAT), SimpleNamespace(dtype=trt.DataType.HALF)]
    layer = SimpleNamespace(op=trt.ElementWiseOperation.SUM, get_input=inputs.__getitem__)
    with pytest.raises(ValueError, match="operands have dtypes FLOAT and HALF"):
        arithmetic.elementwise(trt, layer)


@pytest.mark.parametrize(("mask", "axes"), [(0b110, r"\[1, 2\]"), (0, r"\[\]")])
def test_softmax_over_other_than_one_axis(mask: int, axes: str) -> None:
    with pytest.raises(UnknownSemanticsError, match=f"softmax over axes {axes} is not interpreted; known: one axis"):
        arithmetic.softmax(trt, SimpleNamespace(axes=mask))


def test_a_matrix_times_a_vector(net: Net) -> None:
    none, vector = trt.MatrixOperation.NONE, trt.MatrixOperation.VECTOR
    x, y = net.input("x", torch.float32, (2, 3)), net.input("y", torch.float32, (3,))
    output = net.net.add_matrix_multiply(x, none, y, vector).get_output(0)
    with pytest.raises(InterpreterError, match="matrix operation VECTOR is not interpreted; known: NONE, TRANSPOSE"):
        net.done(output)


def test_an_operand_that_is_not_there() -> None:
    for operands in ([torch.zeros(1), None], [torch.zeros(1)]):
        with pytest.raises(ValueError, match="operand 1 is missing"):
            operand(operands, 1)


def test_a_type_that_torch_does_not_hold() -> None:
    assert torch_dtype(trt.DataType.INT4) == torch.int8
    with pytest.raises(UnknownSemanticsError, match="dtype FP4 is not interpreted"):
        torch_dtype(trt.DataType.FP4)
