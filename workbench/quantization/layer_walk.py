"""Runs a model over many windows of tokens, one layer at a time. Knows nothing about what its taps are for.

Memory: one layer's weights, the residual streams of all windows, and the activations of one batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.backends.cpu_ops import CpuOps
from workbench.backends.torch_ops import TapSink, TorchOps
from workbench.checkpoint import hf_names
from workbench.checkpoint.cast import cast
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import BackendError
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, Step
from workbench.model.rotary import RotaryTables, rotary_tables
from workbench.model.weights import DenseWeight, ModelWeights, on_device

# Rows of the LM head that are held, and whose logits are computed, at once.
HEAD_ROWS = 4096


@dataclass(frozen=True)
class Seen:
    """One tapped tensor of a walk.

    Attributes:
        tap: its name.
        value: ``[batch, seq, features]``, keys and values ``[batch, kv_heads, seq, head_dim]``.
        first_window: which window its first row is.
        first_feature: which feature its first column is; logits come in pieces.
    """

    tap: str
    value: Tensor
    first_window: int
    first_feature: int = 0


Watcher = Callable[[Seen], None]
Stream = tuple[Tensor, Tensor | None]


class LayerWalk:
    """A model that is read from its folder layer by layer.

    Args:
        source: the model.
        dtype: of weights and activations: float32, float16 or bfloat16.
        device: "cpu", or a CUDA device.

    Raises:
        BackendError: torch finds no such device.
    """

    def __init__(self, source: HFCheckpoint, dtype: torch.dtype, device: str = "cpu") -> None:
        check_device(device)
        self.source, self.dtype, self.device = source, dtype, torch.device(device)
        rotary = rotary_tables(source.config, source.config.max_position_embeddings)
        self.rotary = RotaryTables(rotary.cos.to(self.device), rotary.sin.to(self.device))
        # The table stays in its file: only the rows of the tokens at hand are read, and then cast.
        self.embedding = source.tensor(hf_names.EMBEDDING)
        self.final_norm = self._read(hf_names.FINAL_NORM)

    def steps(self, *, head: bool = True) -> int:
        """How many steps :meth:`run` takes: every layer, and the pieces of the head."""
        return self.source.config.num_layers + (len(self._pieces()) if head else 1)

    def run(self, windows: Tensor, batch: int, watch: Watcher, *, head: bool = True) -> Iterator[int]:
        """Pass windows through the model; yields after every step how many are done.

        Args:
            windows: ``[count, length]`` int64 token ids; each window is a text of its own.
            batch: windows that run together.
            watch: called with every tapped tensor: layer by layer, and within a layer batch by batch.
            head: run the LM head, too; without it the last tap is ``final_norm``.
        """
        steps = [self._step(ids) for ids in torch.split(windows, batch)]
        streams = self._enter(torch.split(windows, batch))
        cache = self._cache(batch, windows.shape[1])
        for index in range(self.source.config.num_layers):
            self._layer(index, (steps, streams, cache), watch, batch)
            yield index + 1
        for done, piece in enumerate(self._pieces() if head else [slice(0, 1)]):
            self._head(piece, (steps, streams), watch, batch)
            yield self.source.config.num_layers + done + 1

    @torch.inference_mode()
    def _enter(self, ids: tuple[Tensor, ...]) -> list[Stream]:
        model = InternLM(self.source.config, ModelWeights([], self.embedding, None, None), self.rotary)
        ops = TorchOps(self.dtype)
        return [(model.enter(ops, self._step(part, "cpu")).to(self.device), None) for part in ids]

    @torch.inference_mode()
    def _layer(
        self,
        index: int,
        batches: tuple[list[Step[Tensor]], list[Stream], LayerCache[Tensor]],
        watch: Watcher,
        batch: int,
    ) -> None:
        steps, streams, cache = batches
        weights = on_device(self.source.layers(self.dtype)[index], self.device)
        model = InternLM(self.source.config, ModelWeights([], None, None, None), self.rotary)
        ops = self._ops()
        for i, step in enumerate(steps):
            ops.on_tap = _sink(watch, i * batch)
            rows = LayerCache(cache.key[: len(step.ids)], cache.value[: len(step.ids)])
            hidden, residual, _ = model.layer(ops, step, (index, weights, rows), streams[i])
            streams[i] = hidden, residual

    @torch.inference_mode()
    def _head(self, piece: slice, batches: tuple[list[Step[Tensor]], list[Stream]], watch: Watcher, batch: int) -> None:
        """Some rows of the LM head, as if they were all of it; the norm before it is shown with the first of them."""
        rows = self.source.tensor(hf_names.LM_HEAD)[piece]
        head = DenseWeight(cast(rows, self.dtype, hf_names.LM_HEAD).to(self.device))
        model = InternLM(self.source.config, ModelWeights([], None, self.final_norm, head), self.rotary)
        ops = self._ops()
        for i, (step, (hidden, residual)) in enumerate(zip(*batches, strict=True)):
            ops.on_tap = _sink(watch, i * batch, piece.start)
            model.leave(ops, step, hidden, residual)

    def _pieces(self) -> list[slice]:
        """The LM head's rows, cut."""
        vocab = self.source.config.vocab_size
        return [slice(first, min(first + HEAD_ROWS, vocab)) for first in range(0, vocab, HEAD_ROWS)]

    def _read(self, name: str) -> Tensor:
        return cast(self.source.tensor(name), self.dtype, name).to(self.device)

    def _ops(self) -> TorchOps:
        """A new op set: what it prepares from a layer's weights goes when the layer is done."""
        return CpuOps(self.dtype) if self.device.type == "cpu" else TorchOps(self.dtype)

    def _step(self, ids: Tensor, device: str | torch.device | None = None) -> Step[Tensor]:
        device = self.device if device is None else device
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        start = torch.zeros(len(ids), dtype=torch.int32)
        return Step(ids.to(device), positions.to(device), start.to(device))

    def _cache(self, batch: int, length: int) -> LayerCache[Tensor]:
        """One layer's cache, written anew by every layer and batch."""
        config = self.source.config
        shape = (batch, config.num_kv_heads, length, config.head_dim)
        return LayerCache(*(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)))


def _sink(watch: Watcher, first_window: int, first_feature: int = 0) -> TapSink:
    def on_tap(name: str, value: Tensor) -> None:
        if name == "logits":
            watch(Seen(name, value, first_window, first_feature))
        elif first_feature == 0:
            watch(Seen(name, value, first_window))

    return on_tap


def check_device(device: str) -> None:
    """Refuse a device that torch does not find.

    Raises:
        BackendError: it is none.
    """
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise BackendError(f"device {device!r}", allowed="cpu, cuda, cuda:N")
    gpus = torch.cuda.device_count()
    if device != "cpu" and int(found[1] or 0) >= gpus:
        there = f"{gpus} CUDA GPUs" if gpus else "no CUDA GPU"
        raise BackendError(f"device {device!r} is not there: torch finds {there}", fix="use device 'cpu'")
