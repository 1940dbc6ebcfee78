"""What a GPU benchmark measures: its modes and its options. Needs no GPU and no torch, so that mistakes show first."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import WorkbenchError, nearest
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

GPU_MODES: dict[str, Recipe] = {
    "float16": Recipe(),
    "int8": Recipe(weights=Int8WeightOnly()),
    "int4": Recipe(weights=Int4WeightOnly()),
    "w8a8": Recipe(weights=SmoothQuant()),
    "float16+kv8": Recipe(kv_cache=Int8KVCache()),
    "w8a8+kv8": Recipe(weights=SmoothQuant(), kv_cache=Int8KVCache()),
}
# Rows up to which Hugging Face is compiled. A case takes half a minute or more, which a small model's run has once.
COMPILED_MOST = 8
SMALL_MODEL = 3_000_000_000  # parameters
TUNED_BATCHES = (1, 8, 16, 32, 64)


@dataclass(frozen=True)
class GpuBenchmarkOptions:
    """What to measure.

    Attributes:
        modes: keys of :data:`GPU_MODES`; "int4" has groups of 128, "w8a8" scales per channel and token, "kv8" is an
            INT8 cache. The head is float16 in all of them.
        batches: rows that decode together.
        contexts: tokens that each row has before the first step.
        prefills: prompts that are read at once, and tokens of each.
        steps: decoding steps that are timed; Hugging Face's are fewer.
        hugging_face: time Hugging Face in float16 too: eager in all cases, and at the first context and up to
            :data:`COMPILED_MOST` rows with a static cache and torch.compile; of models of fewer than
            :data:`SMALL_MODEL` parameters only the first of these cases.
        device: a CUDA device.
    """

    modes: tuple[str, ...] = tuple(GPU_MODES)
    batches: tuple[int, ...] = (1, 8, 64)
    contexts: tuple[int, ...] = (128, 2048)
    prefills: tuple[tuple[int, int], ...] = ((1, 2048), (8, 1024))
    steps: int = 128
    hugging_face: bool = True
    device: str = "cuda"

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in GPU_MODES:
                hint = nearest(mode, GPU_MODES)
                raise WorkbenchError(f"benchmark mode {mode!r}", allowed=", ".join(GPU_MODES), fix=hint or None)
        for name, values in (("batches", self.batches), ("contexts", self.contexts), ("steps", (self.steps,))):
            if not values or min(values) < 1:
                raise WorkbenchError(f"benchmark {name} {values}", allowed="whole numbers from 1")
        for shape in self.prefills:
            if min(shape) < 1:
                raise WorkbenchError(f"benchmark prefill {shape[0]}x{shape[1]}", allowed="whole numbers from 1")
