"""An engine's network as a model with taps: built anew from the checkpoint, and executed in torch on the CPU.

A compiled plan shows no tensor between its input and its logits; its network does. What the kernels of a GPU round is
not seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint.unified import Checkpoint
from workbench.engine.build import network_of
from workbench.engine.check import cache_dtype
from workbench.engine.interpreter import Interpreter
from workbench.engine.network import DecoderNetwork
from workbench.engine.product import Product
from workbench.errors import LimitError

TapSink = Callable[[str, Tensor], None]


class InterpretedModel:
    """The network that a checkpoint's recipe asks for, with logits at every position.

    Its KV cache is as long as the text, not as the limits allow: nothing else depends on that.

    Args:
        product: the TensorRT whose network it is; no GPU is needed.
        checkpoint: its recipe's limits are the engine's.
    """

    def __init__(self, product: Product, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.limits = checkpoint.recipe.build
        self._trt = product.trt
        self._checkpoint: Checkpoint | None = checkpoint
        self._built: tuple[int, Any, DecoderNetwork, Interpreter] | None = None

    @torch.inference_mode()
    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """Logits of every position: ``[batch, seq]`` int64 -> ``[batch, seq, vocab]`` float32.

        Taps come when the pass is over, in its order.

        Raises:
            LimitError: more rows or tokens than the engine was built for.
            RuntimeError: after :meth:`close`.
        """
        batch, seq = ids.shape
        if batch > self.limits.max_batch_size or seq > self.limits.max_input_len:
            raise LimitError(
                f"{batch} rows of {seq} tokens",
                allowed=f"{self.limits.max_batch_size} rows of {self.limits.max_input_len} tokens, the engine's limits",
                fix="choose shorter windows, or build the engine with a larger max_input_len",
            )
        network, interpreter = self._network(seq)
        found = interpreter.run(_feeds(network, ids), sorted({*network.record.taps.values(), "logits"}))
        if on_tap is not None:
            for tap, name in network.record.taps.items():
                on_tap(tap, found[name])
        return found["logits"]

    def close(self) -> None:
        """Let go of the network, its constants and the checkpoint's weights."""
        self._built = self._checkpoint = None

    def _network(self, seq: int) -> tuple[DecoderNetwork, Interpreter]:
        """The network for texts of one length; kept for the next."""
        if self._checkpoint is None:
            raise RuntimeError("this engine's network is closed; open another")
        if self._built is None or self._built[0] != seq:
            self._built = None
            limits = replace(self.limits, max_input_len=max(1, seq - 1), max_output_len=1)
            recipe = replace(self._checkpoint.recipe, build=limits)
            builder = self._trt.Builder(self._trt.Logger(self._trt.Logger.ERROR))
            network = network_of(self._trt, builder, self._checkpoint, recipe, every_position=True)
            interpreter = Interpreter(self._trt, network.network, network.record.constants)
            # Builder, network and constants must outlive the interpreter.
            self._built = (seq, builder, network, interpreter)
        return self._built[2], self._built[3]


def _feeds(network: DecoderNetwork, ids: Tensor) -> dict[str, Tensor]:
    model, (batch, seq) = network.model, ids.shape
    shape = (batch, model.num_kv_heads, network.limits.max_seq_len, model.config.head_dim)
    feeds = {
        "input_ids": ids.int(),
        "position_ids": torch.arange(seq).expand(batch, seq).contiguous(),
        "start": torch.zeros(batch, dtype=torch.int32),
    }
    for layer in model.layer_indices:
        for part in ("key", "value"):
            feeds[f"past_{part}.{layer}"] = torch.zeros(shape, dtype=cache_dtype(model, layer, network.dtype))
    return feeds
