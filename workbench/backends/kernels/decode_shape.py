"""Sizes of the decode kernel: what it is compiled for, how it divides its work and its shared memory.

Arithmetic that ``decode_layout.cuh`` repeats; knows no tensors and no devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.backends.kernels import packing
from workbench.backends.kernels.skinny_gemm import STEP, TILED, Kind

CHUNK_STEPS = 16
ROWS_BYTES = 72 << 10  # of shared memory for rows of x, unless the rows of the widest norm need more
MOST_QUERIES = 2  # heads that attend together: registers
CONSUMER_WARPS, HALVES = 16, 2
STREAMED_ROWS = 8  # whose x is streamed wherever no norm needs it whole
TILE_STEP_BYTES, PAIRS_BYTES, PADDING = 1024, 32, 64
FEWER_UNITS, FEWEST_STAGES, ENOUGH_STAGES = (4, 2), 3, 4
MOST_UNITS = 24  # whose scales and biases fit what is left for declared memory


@dataclass(frozen=True)
class StepShape:
    """What a kernel is compiled for.

    Attributes:
        rows: 1, 2, 4 or 8.
        kind, head_kind: of the layers' weights and of the head's.
        groups: scales that a step of 128 values needs, see :func:`packing.scales_per_step`.
        subs_per_group: 32 values each, see :func:`packing.sub_steps_per_group`.
        hidden, intermediate, heads, kv_heads, head_dim, vocab: of the model.
        int8_cache, scale_per_head: of the KV cache.
    """

    rows: int
    kind: Kind
    head_kind: Kind
    groups: int
    subs_per_group: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    int8_cache: bool = False
    scale_per_head: bool = False

    @property
    def queries(self) -> int:
        """Heads of a group that attend together."""
        group = self.heads // self.kv_heads
        return max(n for n in range(1, MOST_QUERIES + 1) if group % n == 0)

    @property
    def parts(self) -> int:
        """Pieces of a row's attention that need no other: key/value heads, times what a group is divided into."""
        return self.rows * self.heads // self.queries


@dataclass(frozen=True)
class StepTuning:
    """How the kernel divides its work.

    Attributes:
        stages: chunks of about 16 KB that the ring may hold; as many as fit, at most this.
        in_flight: chunks of a block that are asked for and not there yet: enough to fill the memory's pipes, few enough
            that what the blocks say to each other does not wait behind them.
        units: units of 16 rows whose sums are kept at once; half of them where x is streamed.
        splits: parts of a row's keys at most; 0 for as many as give every processor work.
        split_rows: keys from which they are divided.
        watchdog: end a kernel that waits for seconds; for tests.
        traced_layer: whose timestamps are kept, see :meth:`DecodeStep.stamps`; -1 for none.
    """

    stages: int = 24
    in_flight: int = 3
    units: int = 7
    splits: int = 0
    split_rows: int = 512
    watchdog: bool = False
    traced_layer: int = -1


def options(shape: StepShape, tuning: StepTuning, shared_bytes: int, processors: int) -> list[str]:
    """The kernel's macros."""
    macros: dict[str, object] = {
        "NB": shape.rows,
        "KIND": shape.kind.value,
        "KIND_HEAD": shape.head_kind.value,
        "GROUPS": shape.groups,
        "SUBS_PER_GROUP": shape.subs_per_group,
        "BLOCKS": processors,
        "HIDDEN": shape.hidden,
        "INTERMEDIATE": shape.intermediate,
        "HEADS": shape.heads,
        "KV_HEADS": shape.kv_heads,
        "DIM": shape.head_dim,
        "VOCAB": shape.vocab,
        "KV8": int(shape.int8_cache),
        "SCALE_STRIDE": int(shape.scale_per_head),
        "SPLITS": splits(shape, tuning, processors),
        "SPLIT_ROWS": tuning.split_rows,
        "QUERIES": shape.queries,
        "ATTENTION_SCALE": f"{shape.head_dim**-0.5!r}f",
        "SEGMENT": segment(shape),
        "UNITS": units_and_stages(shape, tuning, shared_bytes)[0],
        "MAX_SHARED": shared_bytes,
        "MAX_STAGES": tuning.stages,
        "MAX_IN_FLIGHT": tuning.in_flight,
        "WATCHDOG": int(tuning.watchdog),
        "TRACED_LAYER": tuning.traced_layer,
    }
    return [f"-D{name}={value}" for name, value in macros.items()]


def splits(shape: StepShape, tuning: StepTuning, processors: int) -> int:
    """Parts of a row's keys: what gives most processors one piece of attention each."""
    return tuning.splits or max(1, processors // shape.parts)


def segment(shape: StepShape) -> int:
    """Values of k that shared memory holds of every row of x, in whole chunks of every kind."""
    chunk = CHUNK_STEPS * max(STEP.values())
    widest = whole(max(shape.hidden, shape.intermediate, shape.heads * shape.head_dim), chunk)
    fitting = ROWS_BYTES // (shape.rows * 2) // chunk * chunk
    return min(widest, max(fitting, whole(shape.hidden, chunk)))


def whole(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def units_and_stages(shape: StepShape, tuning: StepTuning, shared_bytes: int) -> tuple[int, int]:
    """Units whose sums are kept at once, and chunks that the ring then holds: fewer units where few chunks would fit.

    The rule of ``decode_layout.cuh``; fewer than :data:`FEWEST_STAGES` chunks do not compile.
    """
    held = segment(shape)

    def held_bytes(kind: Kind, k: int, *, normed: bool) -> int:
        values, buffers = whole(k, STEP[kind]), 1
        several = values > (HALVES - 1) * CHUNK_STEPS * STEP[kind]
        if not normed and kind is not Kind.W8A8 and (values > held or (shape.rows == STREAMED_ROWS and several)):
            return CONSUMER_WARPS * 2 * shape.rows * STEP[kind] * 2  # two steps of every warp
        if values > held:
            values, buffers = max(1, held // 2 // STEP[kind] // CHUNK_STEPS) * CHUNK_STEPS * STEP[kind], 2
        return buffers * shape.rows * (values * (1 if kind is Kind.W8A8 else 2) + PADDING)

    def slot(kind: Kind) -> int:
        step = TILE_STEP_BYTES if kind in TILED else TILE_STEP_BYTES + PADDING
        return CHUNK_STEPS * (step + (shape.groups * 2 * PAIRS_BYTES if kind is Kind.INT4 else 0))

    plain = (shape.heads * shape.head_dim, shape.intermediate)
    widest = max(
        *(held_bytes(shape.kind, k, normed=False) for k in plain),
        *(held_bytes(kind, shape.hidden, normed=True) for kind in (shape.kind, shape.head_kind)),
    )
    scratch = CONSUMER_WARPS * 4 * (shape.queries * shape.head_dim + whole(2 * shape.queries, 4))
    taken = whole(max(widest, scratch), 128)
    if Kind.W8A8 in (shape.kind, shape.head_kind):
        taken += whole(shape.rows * (2 * shape.hidden + PADDING), 128)
    norm = whole(2 * shape.hidden, 128)
    found = []
    for units in sorted({tuning.units, *(few for few in FEWER_UNITS if few < tuning.units)}, reverse=True):
        sums = (units + 1) * CONSUMER_WARPS // 2 * shape.rows * packing.TILE_ROWS * 4
        ring = shared_bytes - taken - max(sums, norm)
        stages = ring // max(slot(shape.kind), slot(shape.head_kind))
        found.append((units, min(stages, tuning.stages)))
    return next((pair for pair in found if pair[1] >= ENOUGH_STAGES), max(found, key=lambda pair: pair[1]))


def dynamic_shared_bytes(shape: StepShape, tuning: StepTuning, limit: int) -> int:
    """What is left of a block's shared memory beside what the kernel declares: barriers, biases, angles."""
    return limit - (4 << 10) - shape.rows * (2 * packing.TILE_ROWS * tuning.units + 4 * shape.head_dim)
