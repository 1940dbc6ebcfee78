"""What building an engine will take, on disk and in memory, told before it starts; and the refusal. Builds nothing.

Memory is anonymous memory beside what the interpreter and its libraries hold: weights that are mapped from files are
not in it, since the system drops their pages when it must. The constants are measured, by
``tests/engine/measure_build_memory.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from workbench.checkpoint.available_memory import available_bytes, fits, gigabytes, require_memory
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.rank_parts import EMBEDDING, NORMS, Part, rank_config, rank_parts, total_bytes
from workbench.errors import WorkbenchError
from workbench.model.config import ModelConfig
from workbench.parallel.mapping import Mapping
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant

# Bytes that the builder holds of a weight, over the bytes of that weight: one copy in the plan that it streams out;
# weight-only kinds are laid out anew besides, INT4 through wider values.
BUILDER_COPIES = {Int8WeightOnly.kind: 2.0, Int4WeightOnly.kind: 2.6, SmoothQuant.kind: 1.0}
# What the builder holds whatever it builds, and for each layer whatever its size.
BUILDER_BYTES, BUILDER_BYTES_PER_LAYER = 220_000_000, 7_000_000
# What stays with the process of a check that ran before.
CHECK_LEAVES_BYTES = 500_000_000
# Rotary tables, cubins and what else a plan holds beside its weights.
PLAN_BYTES = 5_000_000
AUTO, FULL, SAMPLE, OFF = VERIFY = ("auto", "full", "sample", "off")
# "auto" checks the whole network up to this many parameters: minutes, and memory that every machine has.
FULL_CHECK_PARAMETERS = 1_000_000_000
# Prompts of the network check, right-padded.
PROMPT_LENGTHS = (13, 48, 7, 30)
# Folded constants that the check's interpreter keeps between steps; those beyond are folded anew in each.
FULL_CACHE_BYTES, SAMPLE_CACHE_BYTES = 6 << 30, 1 << 30
# Ranks and stages that a refusal proposes, in this order.
SPREADS = ((2, 1), (1, 2), (4, 1), (2, 2), (8, 1), (4, 2), (2, 4), (1, 4), (1, 8), (8, 2))


@dataclass(frozen=True)
class BuildJob:
    """One rank's engine.

    Attributes:
        config: the model.
        recipe: how its weights are stored, and the limits.
        verify: how much of the network is checked, one of :data:`VERIFY`.
        mapping: which rank of how many.
        held_bytes: memory that the weights take before the builder sees them; 0 where they are mapped from files.
        with_checkpoint: the engine's folder also gets the checkpoint.
    """

    config: ModelConfig
    recipe: Recipe
    verify: str = AUTO
    mapping: Mapping = field(default_factory=Mapping)
    held_bytes: int = 0
    with_checkpoint: bool = False


@dataclass(frozen=True)
class BuildNeeds:
    """What a build takes, about.

    Attributes:
        disk_bytes: of the engine's folder.
        held_bytes: weights in memory that no file backs.
        builder_bytes: memory of TensorRT's builder, at its peak, and of what a check before it leaves.
        check_bytes: memory of the network check, which is over when the builder starts.
    """

    disk_bytes: int
    held_bytes: int
    builder_bytes: int
    check_bytes: int

    @property
    def memory_bytes(self) -> int:
        """At the peak, beside the interpreter's own."""
        return self.held_bytes + max(self.builder_bytes, self.check_bytes)


def build_needs(job: BuildJob) -> BuildNeeds:
    """What an engine of one rank will take.

    Raises:
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    parts = rank_parts(job.config, job.recipe, job.mapping)
    weight_bytes = total_bytes(parts)
    layers = len(job.mapping.layers(job.config.num_layers))
    copies = sum(round(part.bytes * BUILDER_COPIES.get(part.kind, 1.0)) for part in parts)
    check_bytes = _check_bytes(job, parts)
    left = min(check_bytes, CHECK_LEAVES_BYTES)
    return BuildNeeds(
        disk_bytes=weight_bytes * (2 if job.with_checkpoint else 1) + PLAN_BYTES,
        held_bytes=job.held_bytes,
        builder_bytes=BUILDER_BYTES + layers * BUILDER_BYTES_PER_LAYER + copies + left,
        check_bytes=check_bytes,
    )


def sampled_layers(num_layers: int) -> list[int]:
    """Which layers a sampled check runs: the first, the middle and the last."""
    return sorted({0, num_layers // 2, num_layers - 1})


def how_verified(config: ModelConfig, verify: str) -> str:
    """What "auto" means for a model; other words mean themselves."""
    if verify != AUTO:
        return verify
    parameters = sum(part.elements for part in rank_parts(config, Recipe()))
    return FULL if parameters <= FULL_CHECK_PARAMETERS else SAMPLE


def require_build_memory(job: BuildJob) -> None:
    """Refuse a build that this machine has too little memory for, before anything is written.

    Raises:
        ResourceError: says the figures, and what would fit.
    """
    needs, available = build_needs(job), available_bytes()
    if available is None:
        return
    largest = "TensorRT's builder" if needs.builder_bytes >= needs.check_bytes else "the network check"
    weights = gigabytes(total_bytes(rank_parts(job.config, job.recipe, job.mapping)))
    what = f"a build of {weights} of weights (at its peak {largest})"
    require_memory(needs.memory_bytes, what, fix=_way_out(job, available), available=available)


def _way_out(job: BuildJob, available: int) -> str:
    """What of less memory there is: the check, other kinds of weights, several ranks."""
    smaller = _smaller(job, available)
    fitting = [f"{words} ({gigabytes(needed)}{each})" for words, needed, each in smaller if fits(needed, available)]
    if not fitting:
        return "build it on a machine with more memory"
    return "what fits: " + ", or ".join(fitting)


def _smaller(job: BuildJob, available: int) -> Iterator[tuple[str, int, str]]:
    unchecked = replace(job, verify=OFF)
    yield "--verify off", build_needs(unchecked).memory_bytes, ""
    now = build_needs(unchecked).builder_bytes
    for kind in (Int8WeightOnly(), Int4WeightOnly()):
        smaller = replace(job, recipe=replace(job.recipe, weights=kind))
        if build_needs(replace(smaller, verify=OFF)).builder_bytes < now:
            yield f"--weights {kind.kind}", build_needs(smaller).memory_bytes, ""
    for tp_size, pp_size in SPREADS:
        try:
            needed = max(
                build_needs(replace(job, mapping=Mapping(tp_size, pp_size, stage * tp_size))).memory_bytes
                for stage in range(pp_size)
            )
        except WorkbenchError:  # does not divide
            continue
        if fits(needed, available):
            words = f"--world_size {tp_size * pp_size} --tp_size {tp_size} --pp_size {pp_size}"
            yield words, needed, " a rank"
            return


def _check_bytes(job: BuildJob, parts: list[Part]) -> int:
    """Folded constants that are kept, the widest weight on its way through, taps of three runs, and caches."""
    verify = how_verified(job.config, job.verify)
    if verify == OFF:
        return 0
    count = len(job.mapping.layers(job.config.num_layers))
    layers = len(sampled_layers(count)) if verify == SAMPLE else count
    kept = FULL_CACHE_BYTES if verify == FULL else SAMPLE_CACHE_BYTES
    linears = [part for part in parts if part.name not in (EMBEDDING, NORMS)]
    inner = sum(part.elements for part in linears if part.name.startswith("layers."))
    head = sum(part.elements for part in linears) - inner
    widest = max(part.elements for part in linears)
    checked = 4 * (head + inner * layers // count)
    # In float32 while it is multiplied, and a mask of its NaN; where all constants are kept, the first is among them.
    passing = widest if checked <= kept else 5 * widest
    return min(kept, checked) + passing + layers * (_tap_bytes(job) + _cache_bytes(job))


def _tap_bytes(job: BuildJob) -> int:
    """What one layer shows of a prefill: in float64, and twice in the network's dtype."""
    own = rank_config(job.config, job.mapping)
    query, kv = own.num_heads * own.head_dim, own.num_kv_heads * own.head_dim
    values = 7 * own.hidden_size + 2 * query + 4 * kv + 3 * own.intermediate_size
    tokens = len(PROMPT_LENGTHS) * max(PROMPT_LENGTHS)
    return tokens * values * (8 + 3 * torch_dtype(job.recipe.dtype).itemsize)


def _cache_bytes(job: BuildJob) -> int:
    """Keys and values of one layer, as they go into a step and as they come out."""
    own, recipe = rank_config(job.config, job.mapping), job.recipe
    itemsize = torch_dtype(recipe.dtype).itemsize if recipe.kv_cache is None else 1
    rows = len(PROMPT_LENGTHS) * recipe.build.max_seq_len
    return 4 * rows * own.num_kv_heads * own.head_dim * itemsize
