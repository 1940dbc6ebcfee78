"""What running a model will take, told before it starts: on the CPU from a checkpoint, on a GPU from an engine.

The constants of the CPU are measured (``tests/runtime/measure_session_memory.py``), those of the GPU are what TensorRT
states of its activations when it builds. Runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.backends.packed import can_pack
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.rank_parts import EMBEDDING, NORMS, rank_config, rank_parts, total_bytes
from workbench.model.config import ModelConfig
from workbench.parallel.mapping import Mapping
from workbench.quantization.kv_scales import kv_bytes_per_token
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant

# Of the CPU's kernels, whatever they run.
CPU_BYTES = 130_000_000
# Activations of a prompt on the CPU, in bytes per token and intermediate channel.
CPU_BYTES_PER_CHANNEL = 11
# What one product makes of a weight and drops again, in bytes per value of the widest matrix of a layer.
CPU_BYTES_PER_VALUE = {Int8WeightOnly.kind: 2, Int4WeightOnly.kind: 16, SmoothQuant.kind: 1}
UNPACKED_BYTES_PER_VALUE = 8
# Activations of a prompt in an engine, in bytes per token: so many for each intermediate and each hidden channel.
GPU_CHANNEL_BYTES, GPU_HIDDEN_BYTES = 6.0, 7.25
# SmoothQuant's products leave in float32.
GPU_INTEGER_CHANNEL_BYTES = 9.0


@dataclass(frozen=True)
class RunNeeds:
    """What one rank takes at the recipe's limits: the largest batch of the longest prompts, and their outputs.

    Attributes:
        weight_bytes: as stored.
        kv_bytes_per_token: of one sequence, in an engine.
        cpu_kv_bytes_per_token: of one sequence, in a session on the CPU, where all but INT8 is float32.
        cpu_bytes: memory of a session on the CPU, beside weights that are mapped from files.
        gpu_bytes: memory of an engine on a GPU: weights, KV cache and activations.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    cpu_kv_bytes_per_token: int
    cpu_bytes: int
    gpu_bytes: int


@dataclass(frozen=True)
class RunJob:
    """One rank at work.

    Attributes:
        config: the model.
        recipe: how its weights are stored, and the limits.
        mapping: which rank of how many.
    """

    config: ModelConfig
    recipe: Recipe
    mapping: Mapping = field(default_factory=Mapping)


def run_needs(job: RunJob) -> RunNeeds:
    """What running will take.

    Raises:
        WorkbenchError: heads, channels or layers do not divide over the ranks.
    """
    weight_bytes = total_bytes(rank_parts(job.config, job.recipe, job.mapping))
    per_token = rank_kv_bytes_per_token(job)
    sequences, length = job.recipe.build.max_batch_size, job.recipe.build.max_seq_len
    return RunNeeds(
        weight_bytes=weight_bytes,
        kv_bytes_per_token=per_token,
        cpu_kv_bytes_per_token=_cpu_kv_bytes_per_token(job),
        cpu_bytes=_cpu_bytes(job, sequences * length),
        gpu_bytes=weight_bytes + per_token * sequences * length + activation_bytes(job),
    )


def rank_kv_bytes_per_token(job: RunJob) -> int:
    """Bytes that one token of one sequence takes in the cache of the rank's layers."""
    own = rank_config(job.config, job.mapping)
    whole = kv_bytes_per_token(own, torch_dtype(job.recipe.dtype), job.recipe.kv_cache)
    return whole // own.num_layers * len(job.mapping.layers(own.num_layers))


def _cpu_kv_bytes_per_token(job: RunJob) -> int:
    """As :func:`rank_kv_bytes_per_token` on the CPU, whose sessions hold float32 rows unless they are INT8."""
    own, item_bytes = rank_config(job.config, job.mapping), 4 if job.recipe.kv_cache is None else 1
    return 2 * len(job.mapping.layers(own.num_layers)) * own.num_kv_heads * own.head_dim * item_bytes


def activation_bytes(job: RunJob) -> int:
    """What an engine needs beside weights and cache, for the largest batch of the longest prompts."""
    own, limits = rank_config(job.config, job.mapping), job.recipe.build
    integer = isinstance(job.recipe.weights, SmoothQuant)
    per_channel = GPU_INTEGER_CHANNEL_BYTES if integer else GPU_CHANNEL_BYTES
    per_token = per_channel * own.intermediate_size + GPU_HIDDEN_BYTES * own.hidden_size
    return round(limits.max_batch_size * limits.max_input_len * per_token)


def _cpu_bytes(job: RunJob, cached_tokens: int) -> int:
    """Dense weights are packed anew."""
    own, recipe = rank_config(job.config, job.mapping), job.recipe
    parts = [part for part in rank_parts(job.config, recipe, job.mapping) if part.name not in (EMBEDDING, NORMS)]
    packs = can_pack(torch_dtype(recipe.dtype))
    packed = sum(part.bytes for part in parts if part.kind == recipe.dtype) if packs else 0
    dense = 0 if packs else UNPACKED_BYTES_PER_VALUE
    inner = [part for part in parts if part.name.startswith("layers.")]
    dropped = max(part.elements * CPU_BYTES_PER_VALUE.get(part.kind, dense) for part in inner)
    cache = _cpu_kv_bytes_per_token(job) * cached_tokens
    prompts = recipe.build.max_batch_size * recipe.build.max_input_len
    return CPU_BYTES + packed + dropped + cache + CPU_BYTES_PER_CHANNEL * own.intermediate_size * prompts
