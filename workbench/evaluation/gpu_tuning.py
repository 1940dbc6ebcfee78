"""Measures the tiles of every product of a model on this machine's GPU, and remembers them. Prints nothing.

What is remembered lies in the cache on disk (``WORKBENCH_CACHE``) and holds from the next start on, for every model
whose products have these shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from workbench.backends.kernels import require_gpu, tuning
from workbench.backends.kernels.skinny_gemm import Kind, SkinnyLinear, column_tiles_of, supports
from workbench.backends.kernels.wide_gemm import choose_wide
from workbench.backends.triton_ops import PROGRAMMATIC_LAUNCH
from workbench.evaluation.gpu_benchmark import dummy_weights
from workbench.evaluation.gpu_options import GPU_MODES, TUNED_BATCHES
from workbench.model.config import ModelConfig
from workbench.model.weights import LinearWeight
from workbench.progress import ProgressEvent, Reporter, silent

# Up to here choices of the skinny kernel are measured: 2 to 8 rows share one, also where ``wide_gemm`` takes most of
# them. Beyond, each weight type has its own way.
FEW_ROWS = 8
DEVICE = "cuda"
PRODUCTS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class TunedProduct:
    """One choice.

    Attributes:
        name: of the product: qkv, o, gate_up, down, lm_head.
        key: what the choice is remembered by.
        tiles: the choice; empty for the library's product, or for a norm that is better computed on its own.
        time_us: of the choice, in microseconds, the norm before it included (not with ``int8_gemm``).
        bytes_per_s: of the weight that it reads.
    """

    name: str
    key: str
    tiles: tuple[int, ...]
    time_us: float
    bytes_per_s: float


@dataclass(frozen=True)
class TuningResult:
    """All choices of one model on one GPU."""

    model: str
    gpu: str
    products: tuple[TunedProduct, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """One product to be tuned for one number of rows.

    Attributes:
        mode: whose weights, a key of :data:`~workbench.evaluation.gpu_options.GPU_MODES`.
        name: of the product.
        columns: rows of x.
    """

    mode: str
    name: str
    columns: int

    @property
    def glu(self) -> bool:
        return self.name == "gate_up"

    @property
    def after_norm(self) -> bool:
        """Whether the product's input comes from a norm that nobody else reads."""
        return self.columns == 1 and self.name in ("qkv", "gate_up", "lm_head")


def tasks(modes: tuple[str, ...], batches: tuple[int, ...]) -> list[Task]:
    """What is to be tuned: each weight type once, and the head, which is float16 in all modes."""
    kinds = list(dict.fromkeys(mode.partition("+")[0] for mode in modes))
    columns = sorted({1 if batch == 1 else 8 * column_tiles_of(batch) for batch in batches})
    found = [Task("float16", "lm_head", each) for each in columns]
    return found + [Task(kind, name, each) for kind in kinds for name in PRODUCTS for each in columns]


def tune_model(
    name: str,
    config: ModelConfig,
    modes: tuple[str, ...] = tuple(GPU_MODES),
    batches: tuple[int, ...] = TUNED_BATCHES,
    report: Reporter = silent,
) -> TuningResult:
    """Measure and remember the tiles of a model's products; what was measured stays if this is stopped.

    Args:
        name: of the model, for the result.
        config: its sizes.
        modes: whose weight types are tuned.
        batches: rows that decode together, up to 64; each stands for those that share its kernel.
        report: called as products are done.

    Raises:
        BackendError: torch finds no CUDA device, or one that is too old, or Triton is not installed.
    """
    require_gpu("tuning", otherwise="")
    gpu = torch.cuda.get_device_name()
    todo = tasks(modes, batches)
    found: list[TunedProduct] = []
    held: tuple[tuple[str, str], SkinnyLinear | None] = ("", ""), None
    for done, task in enumerate(todo):
        report(ProgressEvent(f"tune: {task.mode} {task.name} of {task.columns} rows", done, len(todo), "products"))
        if held[0] != (task.mode, task.name):
            held = (task.mode, task.name), _linear(config, task)
        if held[1] is not None:
            for product in measured(held[1], task):
                tuning.remember(gpu, {product.key: list(product.tiles)})
                found.append(product)
        torch.cuda.empty_cache()
    report(ProgressEvent("tune", len(todo), len(todo), "products"))
    return TuningResult(name, gpu, tuple(found))


def _linear(config: ModelConfig, task: Task) -> SkinnyLinear | None:
    """The product's weight on the device, of a model of one layer; None where our kernel cannot multiply it."""
    weights = dummy_weights(replace(config, num_layers=1), GPU_MODES[task.mode])
    weight: LinearWeight | None
    weight = weights.lm_head if task.name == "lm_head" else getattr(weights.layers[0], task.name)
    assert weight is not None
    return SkinnyLinear(weight, torch.device(DEVICE)) if supports(weight) else None


def measured(linear: SkinnyLinear, task: Task) -> Iterator[TunedProduct]:
    """The choices for one product and number of rows: its own, and with the norm before it taken along."""
    glu, columns = task.glu and linear.can_pair(), task.columns
    overlap = torch.cuda.get_device_capability() >= PROGRAMMATIC_LAUNCH

    def product(key: str, tiles: Any, time_us: float) -> TunedProduct:
        entry = tuple(tuning.as_entry(tiles)) if tiles is not None else ()
        return TunedProduct(task.name, key, entry, time_us, linear.nbytes / time_us * 1e6)

    if columns > FEW_ROWS and (linear.kind is Kind.FLOAT16 or choose_wide(linear, columns) is not None):
        return  # the library's, or a kernel's whose tiles follow from the shape
    if columns > FEW_ROWS and linear.kind is Kind.W8A8:
        int8_tiles, time_us = tuning.tune_int8(linear, columns, glu=glu, overlap=overlap)
        yield product(tuning.int8_key_of(linear, columns, glu=glu), int8_tiles, time_us)
        return
    tiles, time_us = tuning.tune(linear, columns, glu=glu, overlap=overlap)
    library_us = tuning.library_us(linear, columns, glu=glu, overlap=overlap) if columns > FEW_ROWS else float("inf")
    best = (None, library_us) if library_us < time_us else (tiles, time_us)
    yield product(tuning.key_of(linear, columns, glu=glu), *best)
    if task.after_norm:
        with_norm, with_norm_us = tuning.tune(linear, columns, glu=glu, overlap=overlap, norm=True)
        faster = with_norm_us < time_us
        kept = (with_norm, with_norm_us) if faster else (None, time_us)
        yield product(tuning.norm_key_of(linear, glu=glu), *kept)
