"""Running a network: rounding, partial runs, constants, collectives, and every error."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_network import Net
from torch import Tensor

from workbench.engine import interpreter as interpreter_module
from workbench.engine.interpreter import Interpreter, InterpreterError
from workbench.engine.semantics import quantization
from workbench.engine.semantics.quantization import broadcast_scale
from workbench.model.numerics import pack_int4

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def chain(net: Net, dtype: torch.dtype = torch.float16) -> Interpreter:
    """x -> half = x * 0.1 -> y0 = half + half; beside it a layer that nobody reads."""
    x = net.input("x", dtype, (-1, 2))
    half = net.elementwise(x, net.constant(torch.full((1, 2), 0.1).to(dtype)), "PROD")
    half.name = "half"
    dead = net.net.add_slice(x, (9, 0), (1, 2), (1, 1))
    dead.name = dead.get_output(0).name = "dead"
    return net.done(net.elementwise(half, half, "SUM"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounds_to_the_declared_dtype_after_each_layer(dtype: torch.dtype, net: Net) -> None:
    x = torch.tensor([[1.001, 3.3]]).to(dtype)
    step = (x.double() * torch.tensor(0.1).to(dtype).double()).to(dtype)
    run = chain(net, dtype).run({"x": x}, outputs=["half", "y0"])
    assert torch.equal(run["half"], step)
    assert torch.equal(run["y0"], (step.double() * 2).to(dtype))


def test_any_tensor_may_be_asked_for_and_dead_layers_do_not_run(net: Net) -> None:
    interpreter = chain(net)
    x = torch.ones(1, 2).half()
    assert set(interpreter.run({"x": x})) == {"y0"}
    assert interpreter.run({"x": x}, outputs=["x", "half"])["x"] is x
    with pytest.raises(InterpreterError, match=r"'dead' .*slice takes 9"):
        interpreter.run({"x": x}, outputs=["dead"])


def test_given_tensors_cut_the_network(net: Net) -> None:
    run = chain(net).run({}, given={"half": torch.full((3, 2), 4.0).half()})
    assert run["y0"].tolist() == [[8.0, 8.0]] * 3


def test_runs_repeat(net: Net) -> None:
    """Constants fold once; a second run, also of other sizes, gives what a fresh interpreter gives."""
    w, scale = torch.randint(-127, 128, (1, 5, 32), dtype=torch.int8), torch.rand(5)
    weight = net.dequantize(net.constant(w), net.constant(scale), 1, trt.DataType.HALF)
    output = net.matmul(net.input("x", torch.float16, (1, -1, 32)), weight, transpose=True)
    interpreter = net.done(output)
    small = Interpreter(trt, net.net, net.constants, cache_bytes=0)
    for length in (4, 1, 4):
        x = torch.randn(1, length, 32).half()
        assert torch.equal(interpreter.run({"x": x})["y0"], small.run({"x": x})["y0"])


@pytest.mark.parametrize(("cache_bytes", "expected"), [(1 << 20, 1), (0, 3)])
def test_constants_fold_once_while_memory_allows(
    cache_bytes: int, expected: int, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = net.dequantize(net.constant(torch.ones(1, 5, 32, dtype=torch.int8)), net.constant(torch.tensor(0.5)))
    interpreter = net.done(net.matmul(net.input("x", torch.float32, (1, 2, 5)), weight), cache_bytes=cache_bytes)
    folded: list[str] = []

    def counted(scale: Tensor, x: Tensor, axis: int) -> Tensor:
        folded.append("once more")
        return broadcast_scale(scale, x, axis)

    monkeypatch.setattr(quantization, "broadcast_scale", counted)
    for _ in range(3):
        interpreter.run({"x": torch.ones(1, 2, 5)})
    assert len(folded) == expected


@pytest.mark.parametrize(
    ("feeds", "given", "outputs", "message"),
    [
        ({"x": torch.ones(1, 3).half()}, {}, None, r"input 'x' has shape \[1, 3\], declared \[-1, 2\]"),
        ({"x": torch.ones(2).half()}, {}, None, r"input 'x' has shape \[2\], declared \[-1, 2\]"),
        ({"x": torch.ones(1, 2)}, {}, None, r"input 'x' is torch.float32, declared torch.float16"),
        ({"y": torch.ones(1, 2)}, {}, None, "the network has no input 'y'; it has x"),
        ({}, {}, None, "input 'x' was not fed"),
        ({}, {}, ["x"], "input 'x' was asked for but not fed"),
        ({}, {}, ["nowhere"], "no layer makes the tensor 'nowhere'"),
        ({}, {"x": torch.ones(1, 2).half()}, None, "no layer makes the given tensor 'x'"),
        ({}, {"half": torch.ones(1, 2)}, None, "given tensor 'half' is torch.float32, declared torch.float16"),
    ],
)
def test_feeds_must_be_as_declared(feeds: Any, given: Any, outputs: Any, message: str, net: Net) -> None:
    with pytest.raises(InterpreterError, match=message):
        chain(net).run(feeds, outputs, given)


def test_named_dimensions_agree(net: Net) -> None:
    x, y = (net.input(name, torch.float32, (-1,)) for name in "xy")
    for tensor in (x, y):
        tensor.set_dimension_name(0, "batch")
    interpreter = net.done(net.elementwise(x, y, "SUM"))
    with pytest.raises(InterpreterError, match="dimension 'batch' has several sizes"):
        interpreter.run({"x": torch.ones(1), "y": torch.ones(2)})


def test_nan_from_nothing_is_an_error_but_nan_passes_through(net: Net) -> None:
    layer = net.net.add_unary(net.input("x", torch.float32, (1,)), trt.UnaryOperation.LOG)
    layer.name = "logarithm"
    interpreter = net.done(layer.get_output(0))
    assert interpreter.run({"x": torch.tensor([torch.nan])})["y0"].isnan().all()
    with pytest.raises(InterpreterError, match=r"'logarithm' \(UNARY\): the result holds NaN"):
        interpreter.run({"x": torch.tensor([-1.0])})


def test_wrong_result_shape_names_the_layer(net: Net) -> None:
    layer = net.net.add_dist_collective(
        net.input("x", torch.float32, (2,)), trt.CollectiveOperation.ALL_REDUCE, trt.ReduceOperation.SUM, -1, None
    )
    interpreter = net.done(layer.get_output(0), collective=lambda _, x: x[None])
    with pytest.raises(InterpreterError, match=r"\(DIST_COLLECTIVE\): the result has shape \[1, 2\], declared \[2\]"):
        interpreter.run({"x": torch.zeros(2)})


def test_unknown_kind_is_an_error(net: Net) -> None:
    layer = net.net.add_topk(net.input("x", torch.float32, (4, 4)), trt.TopKOperation.MAX, 2, 1)
    layer.name = "best"
    with pytest.raises(
        InterpreterError, match=r"'best' \(TOPK\): layer kind TOPK is not interpreted; known: ACTIVATION"
    ):
        net.done(layer.get_output(0))


def test_network_that_tensorrt_itself_finds_wrong(net: Net) -> None:
    rank_one = net.net.add_topk(net.input("x", torch.float32, (4,)), trt.TopKOperation.MAX, 2, 1)
    with pytest.raises(InterpreterError, match="TensorRT cannot state tensor 'y0'"):
        net.done(rank_one.get_output(0))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda n, x: n.net.add_unary(x, trt.UnaryOperation.TAN), "unary operation TAN is not interpreted"),
        (lambda n, x: n.net.add_activation(x, trt.ActivationType.ELU), "activation ELU is not interpreted"),
        (lambda n, x: n.net.add_reduce(x, trt.ReduceOperation.PROD, 1, True), "reduction PROD is not interpreted"),
    ],
)
def test_unknown_operation_is_an_error(add: Callable[[Net, Any], Any], message: str, net: Net) -> None:
    layer = add(net, net.input("x", torch.float32, (4, 4)))
    with pytest.raises(InterpreterError, match=message):
        net.done(layer.get_output(0))


def test_unreadable_constant(net: Net) -> None:
    x = net.input("x", torch.bfloat16, (2,))
    output = net.elementwise(x, net.constant(torch.ones(2).bfloat16(), registered=False), "SUM")
    with pytest.raises(
        InterpreterError, match=r"\(CONSTANT\): a constant of dtype BF16 cannot be read back: register it"
    ):
        net.done(output)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3).bfloat16(), r"the registered constant has shape \[3\], declared \[2\]"),
        (torch.ones(2), "the registered constant is torch.float32, declared torch.bfloat16"),
    ],
)
def test_registered_constant_must_be_as_declared(value: Tensor, message: str, net: Net) -> None:
    x = net.input("x", torch.bfloat16, (2,))
    output = net.elementwise(x, net.constant(torch.ones(2).bfloat16()), "SUM")
    net.constants = dict.fromkeys(net.constants, value)
    with pytest.raises(InterpreterError, match=message):
        net.done(output)


def test_int4_values_must_fit(net: Net) -> None:
    tensor = net.int4(torch.full((2, 2), 7, dtype=torch.int8))
    net.constants = dict.fromkeys(net.constants, torch.full((2, 2), 8, dtype=torch.int8))
    with pytest.raises(InterpreterError, match=r"INT4 values reach 8\.\.8"):
        net.done(net.dequantize(tensor, net.constant(torch.ones(1, 2))))


def test_int4_may_be_registered_packed(net: Net) -> None:
    """Two values in a byte: the interpreter holds them so, and unpacks them where they are read."""
    values = torch.arange(-8, 8, dtype=torch.int8).reshape(4, 4)
    tensor = net.int4(values)
    net.constants[next(iter(net.constants))] = pack_int4(values)
    runner = net.done(net.dequantize(tensor, net.constant(torch.full((1, 4), 0.5))))
    assert torch.equal(runner.run({})["y0"], values * 0.5)


def test_packed_int4_must_be_as_declared(net: Net) -> None:
    tensor = net.int4(torch.zeros(2, 4, dtype=torch.int8))
    net.constants = {name: torch.zeros(2, 4, dtype=torch.uint8) for name in net.constants}
    with pytest.raises(InterpreterError, match=r"the registered constant has shape \[2, 4\], declared \[2, 2\]"):
        net.done(net.dequantize(tensor, net.constant(torch.ones(1, 4))))


def test_constants_come_from_the_network_itself(net: Net) -> None:
    """A registry that disagrees with what the builder will compile must not hide it."""
    x = net.input("x", torch.float32, (2,))
    output = net.elementwise(x, net.constant(torch.ones(2)), "SUM")
    net.constants = dict.fromkeys(net.constants, torch.full((2,), 5.0))
    assert net.done(output).run({"x": torch.zeros(2)})["y0"].tolist() == [1.0, 1.0]


def all_reduce(net: Net) -> Any:
    layer = net.net.add_dist_collective(
        net.input("x", torch.float32, (2,)), trt.CollectiveOperation.ALL_REDUCE, trt.ReduceOperation.SUM, -1, None
    )
    layer.num_ranks = 2
    layer.name = "all_reduce.0"
    return layer.get_output(0)


def test_collective_goes_to_the_handler(net: Net) -> None:
    calls: list[str] = []

    def exchange(name: str, x: Tensor) -> Tensor:
        calls.append(name)
        return x + 10

    run = net.done(all_reduce(net), collective=exchange).run({"x": torch.tensor([1.0, 2.0])})
    assert run["y0"].tolist() == [11, 12]
    assert calls == ["all_reduce.0"]


def test_collective_without_handler_is_an_error(net: Net) -> None:
    with pytest.raises(InterpreterError, match=r"'all_reduce\.0' .*no collective was given"):
        net.done(all_reduce(net)).run({"x": torch.zeros(2)})


# ---- networks that TensorRT's own classes do not let a test make


def stated_network(monkeypatch: pytest.MonkeyPatch, *layers: tuple[str, tuple[str, ...]]) -> Any:
    """A network that consists of CAST layers with such names and outputs; it is read, never run."""

    def tensor(name: str) -> Any:
        return SimpleNamespace(name=name, dtype=trt.DataType.FLOAT, shape=(1,), get_dimension_name=lambda _axis: "")

    def layer(name: str, outputs: tuple[str, ...]) -> Any:
        made = [tensor(output) for output in outputs]
        return SimpleNamespace(
            name=name,
            num_outputs=len(made),
            get_output=made.__getitem__,
            num_inputs=1,
            get_input=lambda _index: tensor("x"),
            to_type=trt.DataType.FLOAT,
        )

    monkeypatch.setattr(interpreter_module, "layer_kind", lambda *_: "CAST")
    monkeypatch.setattr(interpreter_module, "reveal", lambda _, each: each)
    monkeypatch.setattr(interpreter_module, "operation", lambda *_: lambda operands: operands[0])
    made = [layer(*each) for each in layers]
    return SimpleNamespace(
        num_inputs=1,
        get_input=lambda _index: tensor("x"),
        num_outputs=0,
        num_layers=len(made),
        get_layer=made.__getitem__,
    )


def test_a_layer_with_two_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    network = stated_network(monkeypatch, ("split", ("a", "b")))
    with pytest.raises(InterpreterError, match=r"'split' \(CAST\): 2 outputs; only layers with one are interpreted"):
        Interpreter(trt, network)


@pytest.mark.parametrize("second", ["a", "x"])
def test_two_tensors_of_one_name(monkeypatch: pytest.MonkeyPatch, second: str) -> None:
    network = stated_network(monkeypatch, ("first", ("a",)), ("second", (second,)))
    with pytest.raises(InterpreterError, match=rf"'second' \(CAST\): another tensor is called '{second}' too"):
        Interpreter(trt, network)
