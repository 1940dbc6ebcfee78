"""Layers that move values and compute shapes, against numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_network import Net, unary_case

from workbench.engine.interpreter import InterpreterError
from workbench.engine.semantics import places
from workbench.engine.semantics.operands import UnknownSemanticsError

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_shuffle_transposes_reshapes_transposes() -> None:
    def add(net: Net, x: Any) -> Any:
        layer = net.net.add_shuffle(x)
        layer.first_transpose = trt.Permutation([1, 0, 2])
        layer.reshape_dims = (0, -1)
        layer.second_transpose = trt.Permutation([1, 0])
        return layer.get_output(0)

    x = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(unary_case(add, x).numpy(), x.numpy().transpose(1, 0, 2).reshape(3, 8).T)


def test_shuffle_to_a_computed_shape(net: Net) -> None:
    x = net.input("x", torch.float32, (-1, 6))
    layer = net.net.add_shuffle(x)
    rows = net.net.add_slice(net.net.add_shape(x).get_output(0), (0,), (1,), (1,)).get_output(0)
    tail = net.constant(torch.tensor([2, 3]))
    layer.set_input(1, net.net.add_concatenation([rows, tail]).get_output(0))
    value = torch.randn(4, 6)
    assert torch.equal(net.done(layer.get_output(0)).run({"x": value})["y0"], value.reshape(4, 2, 3))


def test_slice_strides_and_repeats(net: Net) -> None:
    x = net.input("x", torch.float32, (4, 6))
    strided = net.net.add_slice(x, (1, 0), (2, 3), (2, 2)).get_output(0)
    repeated = net.net.add_slice(x, (2, 0), (3, 6), (0, 1)).get_output(0)
    value = torch.randn(4, 6)
    run = net.done(strided, repeated).run({"x": value})
    np.testing.assert_array_equal(run["y0"].numpy(), value.numpy()[1:4:2, 0:6:2])
    np.testing.assert_array_equal(run["y1"].numpy(), np.repeat(value.numpy()[2:3], 3, axis=0))


def test_slice_outside_is_an_error(net: Net) -> None:
    x = net.input("x", torch.float32, (-1, 4))
    layer = net.net.add_slice(x, (0, 0), (3, 4), (1, 1))
    layer.name = "first three"
    with pytest.raises(InterpreterError, match=r"'first three' \(SLICE\): slice takes 0\.\.2 of axis 0, which holds 2"):
        net.done(layer.get_output(0)).run({"x": torch.zeros(2, 4)})


def test_concatenation_and_axes(net: Net) -> None:
    x = net.input("x", torch.float16, (2, 3))
    joined = net.net.add_concatenation([x, x])
    joined.axis = 1
    axes = net.constant(torch.tensor([0, 2]))
    wide = net.net.add_unsqueeze(x, axes).get_output(0)
    value = torch.randn(2, 3).half()
    run = net.done(joined.get_output(0), wide, net.net.add_squeeze(wide, axes).get_output(0)).run({"x": value})
    np.testing.assert_array_equal(run["y0"].numpy(), np.concatenate([value.numpy()] * 2, 1))
    assert torch.equal(run["y1"], value.reshape(1, 2, 1, 3))
    assert torch.equal(run["y2"], value)


def test_gather_modes(net: Net) -> None:
    table = torch.randn(5, 3)
    ids = net.input("ids", torch.int32, (2, 2))
    x = net.input("x", torch.float32, (2, 4, 3))
    pairs = net.net.add_gather(x, ids, 1)
    pairs.num_elementwise_dims = 1
    nd = net.net.add_gather_v2(x, ids, trt.GatherMode.ND)
    element = net.net.add_gather_v2(net.constant(table[:, :2]), ids, trt.GatherMode.ELEMENT)
    element.axis = 0
    rows = net.net.add_gather(net.constant(table), ids, 0)
    outputs = [each.get_output(0) for each in (rows, pairs, nd, element)]
    index, value = torch.tensor([[0, 3], [1, 1]], dtype=torch.int32), torch.randn(2, 4, 3)
    run = net.done(*outputs).run({"ids": index, "x": value})
    i, v, t = index.numpy(), value.numpy(), table.numpy()
    np.testing.assert_array_equal(run["y0"].numpy(), t[i])
    np.testing.assert_array_equal(run["y1"].numpy(), np.stack([v[0][i[0]], v[1][i[1]]]))
    np.testing.assert_array_equal(run["y2"].numpy(), v[i[:, 0], i[:, 1]])
    np.testing.assert_array_equal(run["y3"].numpy(), np.take_along_axis(t[:, :2], i, axis=0))


@pytest.mark.parametrize("index", [5, -1])
def test_gather_outside_is_an_error(index: int, net: Net) -> None:
    layer = net.net.add_gather(net.constant(torch.randn(5, 3)), net.input("ids", torch.int32, (1,)), 0)
    layer.name = "embedding"
    interpreter = net.done(layer.get_output(0))
    with pytest.raises(InterpreterError, match=rf"'embedding' \(GATHER\): index {index} is outside 0\.\.5"):
        interpreter.run({"ids": torch.tensor([index], dtype=torch.int32)})


def test_fill(net: Net) -> None:
    static = net.net.add_fill((4,), trt.FillOperation.LINSPACE, trt.DataType.FLOAT)
    static.alpha, static.beta = 1.0, 0.5
    dynamic = net.net.add_fill((0, 0), trt.FillOperation.LINSPACE, trt.DataType.INT32)
    x = net.input("x", torch.float32, (-1, 3))
    dynamic.set_input(0, net.net.add_shape(x).get_output(0))
    dynamic.set_input(1, net.constant(torch.tensor(7, dtype=torch.int32)))
    dynamic.set_input(2, net.constant(torch.tensor([10, 1], dtype=torch.int32)))
    run = net.done(static.get_output(0), dynamic.get_output(0)).run({"x": torch.zeros(2, 3)})
    assert run["y0"].tolist() == [1.0, 1.5, 2.0, 2.5]
    assert run["y1"].tolist() == [[7, 8, 9], [17, 18, 19]]


# ---- what is refused


def test_a_slice_beyond_its_bounds_is_only_interpreted_when_strict(net: Net) -> None:
    layer = net.net.add_slice(net.input("x", torch.float32, (4, 4)), (0, 0), (2, 2), (1, 1))
    layer.mode = trt.SampleMode.WRAP
    with pytest.raises(InterpreterError, match="only slices of all axes with STRICT_BOUNDS are interpreted"):
        net.done(layer.get_output(0))


def test_only_axes_of_size_one_can_be_squeezed(net: Net) -> None:
    output = net.net.add_squeeze(net.input("x", torch.float32, (-1, 4)), net.constant(torch.tensor([0]))).get_output(0)
    interpreter = net.done(output)
    assert interpreter.run({"x": torch.ones(1, 4)})["y0"].shape == (4,)
    with pytest.raises(InterpreterError, match=r"\(SQUEEZE\): squeezes axis 0 of size 3"):
        interpreter.run({"x": torch.ones(3, 4)})


@pytest.mark.parametrize("mode", ["ND", "ELEMENT"])
def test_only_default_gathers_pair_axes(mode: str) -> None:
    layer = SimpleNamespace(mode=trt.GatherMode.__members__[mode], axis=0, num_elementwise_dims=1)
    with pytest.raises(UnknownSemanticsError, match=f"gather {mode} with elementwise dimensions is not interpreted"):
        places.gather(trt, layer)


def test_random_fills_are_not_interpreted(net: Net) -> None:
    output = net.net.add_fill((4,), trt.FillOperation.RANDOM_UNIFORM, trt.DataType.FLOAT).get_output(0)
    with pytest.raises(InterpreterError, match="fill RANDOM_UNIFORM is not interpreted; known: LINSPACE"):
        net.done(output)
