"""What the builder compiled, read from its own log: kernels with their types, and the precision of each linear layer.

With ``profiling_verbosity = DETAILED`` and a logger at VERBOSE, the builder prints one long message ``Layers:`` (a line
a kernel), and INFO lines about memory. That needs no GPU. The log's form is not documented: what cannot be recognized
is reported as ``unknown``. The plan itself is never opened.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

INT8_GEMM = "int8 x int8"
FP8_GEMM = "fp8 x fp8"
EXPANDED = "expanded"
UNKNOWN = "unknown"

_FLOATS = {"Half": "fp16", "BFloat16": "bf16", "Float": "fp32"}
_INTEGERS = {"Int8": "int8", "Int4": "int4", "FP8": "fp8"}
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+)")
_KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*)\], Constants: \[(?P<constants>.*)\], "
    r"Outputs: \[(?P<outputs>.*)\], TacticName: (?P<tactic>.*?), StreamId"
)
_SUFFIX = re.compile(r"_myl(?P<part>\d+)_\d+$")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_MEMORY = {
    "activation_bytes": "Total Activation Memory",
    "weights_bytes": "Total Weights Memory",
    "scratch_bytes": "Max Scratch Memory",
}


# ---- the log


@dataclass(frozen=True)
class LogMessage:
    """One message; ``severity`` is the name of a ``trt.ILogger.Severity``."""

    severity: str
    text: str


class MessageLog(Protocol):
    """A TensorRT logger that keeps what it is told: errors, warnings, information, and the list of kernels."""

    messages: list[LogMessage]

    def clear(self) -> None:
        """Forget all messages."""
        ...


_LOGGERS: dict[str, MessageLog] = {}
_LOCK = threading.Lock()


def collecting_logger(trt: Any) -> MessageLog:
    """The process's logger for the module ``trt``; call ``clear`` before a build whose messages are wanted alone.

    TensorRT keeps the first logger that a process gives it, so there is one, shared by every builder.
    """
    with _LOCK:
        if trt.__name__ not in _LOGGERS:
            _LOGGERS[trt.__name__] = _make_logger(trt)
        return _LOGGERS[trt.__name__]


def _make_logger(trt: Any) -> MessageLog:
    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[LogMessage] = []

        def log(self, severity: Any, text: str) -> None:
            # The other verbose messages are many megabytes on a large network.
            if severity.name != "VERBOSE" or text.startswith("Layers:"):
                self.messages.append(LogMessage(severity.name, text))

        def clear(self) -> None:
            self.messages.clear()

    return CollectingLogger()


def error_messages(messages: Iterable[LogMessage]) -> list[str]:
    """The texts of errors, in order, each once."""
    return list(dict.fromkeys(each.text for each in messages if each.severity in ("ERROR", "INTERNAL_ERROR")))


@dataclass(frozen=True)
class EngineStatistics:
    """Device memory that the builder states; the largest over all profiles, None where it stated nothing."""

    activation_bytes: int | None
    weights_bytes: int | None
    scratch_bytes: int | None


def engine_statistics(messages: Iterable[LogMessage]) -> EngineStatistics:
    """Memory of one build."""
    texts = [each.text for each in messages if each.severity == "INFO"]
    found = {
        name: [int(match[1]) for text in texts if (match := re.match(rf"{label}: (\d+)", text))]
        for name, label in _MEMORY.items()
    }
    return EngineStatistics(**{name: max(values, default=None) for name, values in found.items()})


# ---- kernels


@dataclass(frozen=True)
class KernelTensor:
    """A tensor that a kernel reads or writes; ``dtype`` in the builder's words (``Half``, ``Int8``), -1 is dynamic."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def matrix(self) -> tuple[int, int] | None:
        """The two sizes of a static matrix, ones in front left out; None for anything else."""
        dims = self.dims
        while len(dims) > 2 and dims[0] == 1:
            dims = dims[1:]
        return (dims[0], dims[1]) if len(dims) == 2 and min(dims) > 1 else None


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel of the engine.

    Attributes:
        name: as printed, such as ``layers.0.mlp.down_myl0_18`` or ``__myl_FcAdd_myl0_2``.
        kind: the builder's ``LayerType``: ``gemm``, ``runtime_fusion``, ``kgen``, ``signal`` ...
        inputs, constants, outputs: its tensors.
        tactic: the implementation; empty where the builder names none.
    """

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    tactic: str

    @property
    def origin(self) -> str:
        """The name without the marks of part and profile: that of a network layer, or of fused operations."""
        return _PROFILE.sub("", _SUFFIX.sub("", self.name))


def parse_kernels(messages: Iterable[LogMessage]) -> list[CompiledKernel]:
    """The kernels of the last engine in the log, in the order in which they run; empty when it printed none."""
    listing = next((each.text for each in reversed(list(messages)) if each.text.startswith("Layers:")), "")
    lines = listing.partition("\n\nI/O Tensors:")[0].splitlines()[1:]
    return [_kernel(line) for line in lines if line.strip()]


def _kernel(line: str) -> CompiledKernel:
    match = _KERNEL.match(line)
    if match is None:
        return CompiledKernel(line[:80], UNKNOWN, (), (), (), "")
    inputs, constants, outputs = (_tensors(match[part]) for part in ("inputs", "constants", "outputs"))
    return CompiledKernel(match["name"], match["kind"], inputs, constants, outputs, match["tactic"])


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(each["name"], each["dtype"], tuple(int(size) for size in each["dims"].split(",") if size))
        for each in _TENSOR.finditer(text)
    )


def by_profile(kernels: Iterable[CompiledKernel]) -> dict[int, list[CompiledKernel]]:
    """Kernels by optimization profile. A kernel's name tells its part; the part's tensors tell the profile."""
    parts: dict[str, list[CompiledKernel]] = {}
    for kernel in kernels:
        suffix = _SUFFIX.search(kernel.name)
        parts.setdefault(suffix["part"] if suffix else "", []).append(kernel)
    profiles: dict[int, list[CompiledKernel]] = {}
    for part in parts.values():
        names = [name for kernel in part for name in (kernel.name, *(each.name for each in kernel.inputs))]
        marks = [int(mark[1]) for name in names if (mark := _PROFILE.search(name))]
        profiles.setdefault(max(marks, default=0), []).extend(part)
    return dict(sorted(profiles.items()))


# ---- linear layers


@dataclass(frozen=True)
class CompiledLinear:
    """How one linear layer was compiled, by profile.

    Attributes:
        name: the linear layer's name.
        precisions: ``fp16``, ``bf16``, ``fp32`` (operands and result; TF32 inside is not visible here),
            ``int8 x int8``, ``int8 weight-only, fp16 GEMM`` (dequantized inside the kernel), ``expanded`` (dequantized
            in memory at every run), or ``unknown``; one for each profile.
    """

    name: str
    precisions: dict[int, str]

    @property
    def precision(self) -> str:
        """The precision of all profiles; where they differ, each with its profile."""
        distinct = set(self.precisions.values())
        if len(distinct) <= 1:
            return next(iter(distinct), UNKNOWN)
        return ", ".join(f"{precision} (profile {profile})" for profile, precision in self.precisions.items())


def compiled_linears(
    kernels: Iterable[CompiledKernel],
    linear_names: Sequence[str],
    shapes: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, CompiledLinear]:
    """The precision in which each linear layer was compiled.

    A kernel that is a plain GEMM keeps the network layer's name. One fused with its neighbours loses it: such kernels
    are matched by their place between named ones, and only where as many are nameless as linear layers are missing,
    with the same weight sizes. That is sound because each linear layer of a decoder reads what the one before it
    made, so they run in the network's order. Anything else is ``unknown``.

    Args:
        kernels: of one engine, as :func:`parse_kernels` gives them.
        linear_names: names of the linear layers' matrix multiplications, in the network's order.
        shapes: ``(out, in)`` of each weight; when given, a match by place needs equal sizes.
    """
    profiles = by_profile(kernels)
    matched = {profile: _match(part, linear_names, shapes or {}) for profile, part in profiles.items()}
    return {
        name: CompiledLinear(name, {profile: found.get(name, UNKNOWN) for profile, found in matched.items()})
        for name in linear_names
    }


@dataclass(frozen=True)
class _Product:
    """A kernel that multiplies by a weight matrix: the linear layer it is named after, if any."""

    kernel: CompiledKernel
    weight: KernelTensor
    expanded: bool
    linear: str | None


def _match(
    kernels: Sequence[CompiledKernel], linears: Sequence[str], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Precision by linear layer in one profile; layers without a certain match are left out."""
    products = _products(kernels, frozenset(linears))
    places = [linears.index(product.linear) for product in products if product.linear is not None]
    if places != sorted(set(places)):
        return {}
    found: dict[str, str] = {}
    nameless: list[_Product] = []
    missing_from = 0
    for product in [*products, None]:
        if product is not None and product.linear is None:
            nameless.append(product)
            continue
        place = len(linears) if product is None else linears.index(str(product.linear))
        missing = linears[missing_from:place]
        if len(missing) == len(nameless) and all(map(_fits, nameless, map(shapes.get, missing))):
            found.update({name: _precision(each) for name, each in zip(missing, nameless, strict=True)})
        if product is not None:
            found[linears[place]] = _precision(product)
        missing_from, nameless = place + 1, []
    return found


def _fits(product: _Product, shape: tuple[int, int] | None) -> bool:
    return shape is None or sorted(product.weight.matrix or ()) == sorted(shape)


def _products(kernels: Sequence[CompiledKernel], linears: frozenset[str]) -> list[_Product]:
    """The kernels that multiply by a weight matrix, in order."""
    # A kernel without inputs computes the same at every run: a weight, dequantized in memory.
    expanded = {each.name: each for kernel in kernels if not kernel.inputs for each in kernel.outputs}
    products = []
    for kernel in kernels:
        if kernel.kind != "gemm" and kernel.origin not in linears and not _fuses_product(kernel):
            continue
        constants = [each for each in kernel.constants if each.matrix]
        computed = [expanded[each.name] for each in kernel.inputs if each.name in expanded and each.matrix]
        if constants or computed:
            weight = max(constants or computed, key=_weight_order)
            linear = kernel.origin if kernel.origin in linears else None
            products.append(_Product(kernel, weight, not constants, linear))
    return products


def _fuses_product(kernel: CompiledKernel) -> bool:
    """Fused kernels are named after their operations; Fc is the product with a matrix."""
    return kernel.origin.startswith("__myl_") and "Fc" in re.findall(r"[A-Z][a-z]*", kernel.origin)


def _weight_order(tensor: KernelTensor) -> tuple[bool, int]:
    """Quantized matrices before float ones, which may be their scales; then by size."""
    rows, columns = tensor.matrix or (0, 0)
    return tensor.dtype in _INTEGERS, rows * columns


def _precision(product: _Product) -> str:
    if product.expanded:
        return EXPANDED
    weight, kernel = product.weight.dtype, product.kernel
    activations = {each.dtype for each in kernel.inputs}
    if weight in _FLOATS:
        return _FLOATS[weight] if activations <= {weight} else UNKNOWN
    if weight in activations:
        return {"Int8": INT8_GEMM, "FP8": FP8_GEMM}.get(weight, UNKNOWN)
    # Rounding in the kernel would mean activations quantized inside; a name cut short may hide it.
    hidden = {"Roun", "Etc"} & set(re.findall(r"[A-Z][a-z]*", kernel.origin))
    if weight in _INTEGERS and len(activations) == 1 and activations <= set(_FLOATS) and not hidden:
        return f"{_INTEGERS[weight]} weight-only, {_FLOATS[activations.pop()]} GEMM"
    return UNKNOWN
