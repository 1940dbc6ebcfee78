"""What the decode kernel is compiled for: sizes of a model, how the work is divided, and the macros that say so."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.backends.kernels.skinny_gemm import STEP, Kind

CHUNK_STEPS = 8
ROWS_BYTES = 72 << 10  # of shared memory for rows of x, unless one row of the widest norm needs more
MOST_QUERIES = {False: 2, True: 2}  # heads that attend together with a float16 and an INT8 cache: registers


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
        return max(n for n in range(1, MOST_QUERIES[self.int8_cache] + 1) if group % n == 0)

    @property
    def parts(self) -> int:
        """Pieces of a row's attention that need no other: key/value heads, times what a group is divided into."""
        return self.rows * self.heads // self.queries


@dataclass(frozen=True)
class StepTuning:
    """How the kernel divides its work.

    Attributes:
        stages: chunks of about 8 KB that the ring may hold; as many as fit, at most this.
        in_flight: chunks of a block that are asked for and not there yet: enough to fill the memory's pipes, few enough
            that what the blocks say to each other does not wait behind them.
        units: units of 16 rows whose sums are kept at once.
        splits: parts of a row's keys at most; 0 for as many as give every processor work.
        split_rows: keys from which they are divided.
        prefetched_rows: of the cache, over all rows of x, that are brought into the L2 cache ahead.
        watchdog: end a kernel that waits for seconds; for tests.
    """

    stages: int = 48
    in_flight: int = 6
    units: int = 12
    splits: int = 0
    split_rows: int = 512
    prefetched_rows: int = 2048
    watchdog: bool = False


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
        "PREFETCHED_ROWS": tuning.prefetched_rows,
        "QUERIES": shape.queries,
        "ATTENTION_SCALE": f"{shape.head_dim**-0.5!r}f",
        "SEGMENT": segment(shape),
        "UNITS": tuning.units,
        "MAX_SHARED": shared_bytes,
        "MAX_STAGES": tuning.stages,
        "MAX_IN_FLIGHT": tuning.in_flight,
        "WATCHDOG": int(tuning.watchdog),
    }
    return [f"-D{name}={value}" for name, value in macros.items()]


def splits(shape: StepShape, tuning: StepTuning, processors: int) -> int:
    """Parts of a row's keys: what gives most processors one piece of attention each."""
    return tuning.splits or max(1, processors // shape.parts)


def segment(shape: StepShape) -> int:
    """Values of k that shared memory holds of every row of x, in whole chunks of every kind."""
    chunk = CHUNK_STEPS * max(STEP.values())
    width = 1 if shape.kind is Kind.W8A8 else 2
    widest = whole(max(shape.hidden, shape.intermediate, shape.heads * shape.head_dim), chunk)
    fitting = ROWS_BYTES // (shape.rows * width) // chunk * chunk
    return min(widest, max(fitting, whole(shape.hidden, chunk)))


def whole(value: int, unit: int) -> int:
    """The value, rounded up to whole units."""
    return -(-value // unit) * unit
