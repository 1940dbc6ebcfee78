"""Writes a checkpoint of random weights, of any InternLM version and size, in little memory. Has no tokenizer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import torch_dtype
from workbench.checkpoint.hf_config import write_json, write_model_config
from workbench.checkpoint.hf_names import FORMATS, INTERNLM, INTERNLM3
from workbench.checkpoint.output_folder import MODEL, RANDOM_MARKER, output_folder
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE
from workbench.checkpoint.wqkv import join_wqkv
from workbench.errors import WorkbenchError
from workbench.model.config import ModelConfig
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.recipe import DTYPES

_CHUNK_VALUES = 1 << 22


@dataclass(frozen=True)
class RandomModelSpec:
    """What a random model looks like; the same sizes, biases and seed are the same model in every format.

    Attributes:
        format: whose names and fields: "internlm" (v1), "internlm2", "internlm3" or "llama".
        layers, hidden, heads, intermediate, vocab: sizes; ``hidden / heads`` must be even.
        kv_heads: key/value heads, a divisor of ``heads``; None gives every query head its own.
        bias: q, k, v and o carry random biases, InternLM3's gate, up and down too; None leaves it to the format, and
            only v1 has them.
        tied: the LM head is the embedding table, and no tensor of its own.
        seed: the same seed gives the same bytes.
        dtype: element type of the tensors.
        shard_bytes: largest file; None writes one file without an index.
        max_positions: ``max_position_embeddings``.
    """

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int | None = None
    intermediate: int = 160
    vocab: int = 97
    bias: bool | None = None
    seed: int = 0
    dtype: str = "float32"
    shard_bytes: int | None = None
    max_positions: int = 4096
    format: str = INTERNLM.model_type
    tied: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise WorkbenchError(f"format is {self.format!r}", allowed=", ".join(FORMATS))
        for name in ("layers", "hidden", "heads", "intermediate", "vocab", "max_positions"):
            if getattr(self, name) < 1:
                raise WorkbenchError(f"{name} is {getattr(self, name)}", allowed="whole numbers from 1")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise WorkbenchError(
                f"heads is {self.heads} for hidden {self.hidden}", allowed="divisors that leave an even head width"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise WorkbenchError(f"kv_heads is {self.kv_heads}", allowed=f"divisors of heads {self.heads}")
        if self.dtype not in DTYPES:
            raise WorkbenchError(f"dtype is {self.dtype!r}", allowed=", ".join(DTYPES))
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise WorkbenchError(f"shard_bytes is {self.shard_bytes}", allowed="whole numbers from 1")

    @property
    def config(self) -> ModelConfig:
        bias = self.format == INTERNLM.model_type if self.bias is None else self.bias
        return ModelConfig(
            architecture=FORMATS[self.format].architecture,
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads or self.heads,
            head_dim=self.hidden // self.heads,
            norm_epsilon=1e-6,
            rope_theta=10000.0,
            max_position_embeddings=self.max_positions,
            qkv_bias=bias,
            output_bias=bias,
            mlp_bias=bias and self.format == INTERNLM3.model_type,
            bos_token_id=min(1, self.vocab - 1),
            pad_token_id=min(2, self.vocab - 1),
            eos_token_ids=(min(2, self.vocab - 1),),
        )


def write_random_model(out: Path, spec: RandomModelSpec, *, force: bool = False, report: Reporter = silent) -> None:
    """Write ``config.json`` and safetensors; matrices are N(0, 1/sqrt(in)), norms near 1, biases N(0, 0.1).

    Raises:
        CheckpointError: ``out`` exists and ``force`` is not given, or the disk is too small.
    """
    dtype = torch_dtype(spec.dtype)
    stored = dict(hf_names.stored_shapes(spec.config))
    if spec.tied:
        del stored[hf_names.stored_place(spec.config, hf_names.LM_HEAD).name]
    tensors = {name: TensorSpec(dtype, shape) for name, shape in stored.items()}
    total = sum(tensor.bytes for tensor in tensors.values())
    done = 0
    with output_folder(out, force=force, needed_bytes=total, replaces=MODEL) as folder:
        write_model_config(folder, spec.config, spec.dtype, tied=spec.tied)
        write_json(folder / RANDOM_MARKER, {"seed": spec.seed})
        shards = _shards(tensors, spec.shard_bytes)
        for file_name, names in shards.items():
            planned = {name: tensors[name] for name in names}
            with SafetensorsWriter(folder / file_name, planned, {"format": "pt"}) as writer:
                for name, chunk in _random_chunks(spec.config, planned, spec.seed):
                    writer.write_rows(name, chunk)
                    done += chunk.nbytes
                    report(ProgressEvent("random model", done, total, "B"))
        if list(shards) != [SINGLE_FILE]:
            weight_map = {name: file_name for file_name, names in shards.items() for name in names}
            write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(tensors: dict[str, TensorSpec], shard_bytes: int | None) -> dict[str, list[str]]:
    """File name -> tensor names; a tensor larger than ``shard_bytes`` gets a file of its own."""
    if shard_bytes is None:
        return {SINGLE_FILE: list(tensors)}
    groups: list[list[str]] = [[]]
    filled = 0
    for name, spec in tensors.items():
        if groups[-1] and filled + spec.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += spec.bytes
    return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups)}


def _random_chunks(config: ModelConfig, tensors: dict[str, TensorSpec], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Rows of each stored tensor in turn; the values of its parts depend on their own names and the seed alone."""
    shapes = hf_names.tensor_shapes(config)
    for stored, spec in tensors.items():
        parts = [(name, TensorSpec(spec.dtype, shapes[name])) for name in hf_names.stored_parts(config)[stored]]
        if len(parts) == 1:
            yield from ((stored, chunk) for chunk in _random_rows(*parts[0], seed))
        else:
            query, key, value = (torch.cat(list(_random_rows(name, part, seed))) for name, part in parts)
            yield stored, join_wqkv(query, key, value, config)


def _random_rows(name: str, spec: TensorSpec, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    mean, deviation = _distribution(name, spec)
    width = spec.elements // spec.shape[0]
    step = max(1, _CHUNK_VALUES // width)
    for row in range(0, spec.shape[0], step):
        shape = (min(step, spec.shape[0] - row), *spec.shape[1:])
        yield torch.randn(shape, generator=generator).mul_(deviation).add_(mean).to(spec.dtype)


def _distribution(name: str, spec: TensorSpec) -> tuple[float, float]:
    """Mean and standard deviation that keep activations near unit size."""
    if name.endswith("norm.weight"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.1
    return 0.0, 1.0 if name == hf_names.EMBEDDING else spec.shape[-1] ** -0.5
