"""Sessions: token ids in, logits out, with a KV cache between calls. Knows nothing of text or of choosing tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench.backends.cpu_ops import CpuOps
from workbench.backends.torch_ops import TapSink, TorchOps
from workbench.errors import BackendError
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.ops import Step
from workbench.model.rotary import RotaryTables, rotary_tables
from workbench.model.weights import ModelWeights, on_device
from workbench.recipe import BuildLimits
from workbench.runtime.kv_cache import KVCache
from workbench.runtime.limits import check_decode, check_ids, check_positions, check_prompts, sequence_limit

if TYPE_CHECKING:
    from workbench.checkpoint.unified import Checkpoint
    from workbench.runtime.sampling import SamplingOptions

OP_SETS: dict[str, type[TorchOps]] = {"cpu": CpuOps, "torch": TorchOps}


class Session(Protocol):
    """A loaded checkpoint or engine.

    Attributes:
        config: the model's sizes.
        limits: what it was made for; requests beyond are refused.
        backend: what runs it: "torch", "cpu", "triton" or "tensorrt".
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def limits(self) -> BuildLimits: ...

    @property
    def backend(self) -> str: ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Forget what came before and read prompts of any lengths.

        Returns:
            ``[batch, vocab]`` float32: the logits after each prompt's last token.

        Raises:
            LimitError: a prompt, the batch or a token id beyond what the session was made for.
        """
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """One more token for every row: ``[batch]`` int64 -> ``[batch, vocab]`` float32.

        Raises:
            LimitError: the cache or the model's positions are used up, or an id outside the vocabulary.
        """
        ...

    def close(self) -> None:
        """Give memory back; the session is of no use afterwards."""
        ...


@runtime_checkable
class TokenSession(Session, Protocol):
    """A session that also chooses tokens itself, where its logits are."""

    def tokens(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, max_output_len: int
    ) -> Iterator[list[int]]:
        """As :meth:`prefill`, then token after token for every row, as a sampler on the host would choose them.

        Yields:
            A token for each row, ``max_output_len`` times at most. The step after may be under way by then, so no other
            call of the session may come between.

        Raises:
            LimitError: as :meth:`prefill` and :meth:`decode`.
            SamplingError: logits are NaN or infinite, or bad words leave no token.
        """
        ...


@dataclass(frozen=True)
class SessionOptions:
    """How a :class:`TorchSession` runs.

    Attributes:
        dtype: of activations: float64 (torch op set only), float32, float16 or bfloat16.
        backend: "cpu" for the fast CPU op set, "torch" for the plain one.
        limits: longest prompt, output and largest batch.
        device: a torch device; "cpu" op set: cpu only.
    """

    dtype: torch.dtype
    backend: str = "cpu"
    limits: BuildLimits = field(default_factory=BuildLimits)
    device: str = "cpu"


class TorchSession:
    """One model on one torch op set, all of it in this process.

    Args:
        config: the model's sizes.
        weights: all layers, the embedding and the head. A lazy sequence of layers is read here, once.
        options: dtype, op set, limits and device.

    Raises:
        BackendError: an unknown op set, or a device that this machine or the op set does not have.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, options: SessionOptions) -> None:
        _check_backend(options)
        self.config = config
        self.limits = options.limits
        self.backend = options.backend
        self.dtype = options.dtype
        self.device = torch.device(options.device)
        rotary = rotary_tables(config, config.max_position_embeddings)
        held = dataclasses.replace(weights, layers=[on_device(layer, self.device) for layer in weights.layers])
        self.weights: ModelWeights = on_device(held, self.device)
        tables = RotaryTables(rotary.cos.to(self.device), rotary.sin.to(self.device))
        self.model = InternLM(config, self.weights, tables)
        self.ops = OP_SETS[options.backend](options.dtype)
        self.max_len = sequence_limit(config, options.limits)
        self._cache: KVCache | None = None
        self._lengths: list[int] = []

    @classmethod
    def open(cls, checkpoint: Checkpoint, backend: str = "cpu") -> TorchSession:
        """A session with the dtype and limits of the checkpoint's recipe."""
        dtype: torch.dtype = getattr(torch, checkpoint.recipe.dtype)
        return cls(
            checkpoint.config, checkpoint.weights, SessionOptions(dtype, backend, limits=checkpoint.recipe.build)
        )

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`Session.prefill`. Rows are padded on the right; nothing reads what pads write."""
        check_prompts(prompts, self.config, self.limits)
        ids, lengths = padded(prompts)
        self._cache = self._new_cache(len(prompts), self.max_len)
        logits = self._forward(ids, [0] * len(prompts), torch.tensor(lengths) - 1)
        self._lengths = lengths
        return logits[:, 0]

    def decode(self, ids: Tensor) -> Tensor:
        """See :meth:`Session.decode`. Each row goes on at its own position.

        Raises:
            RuntimeError: before any prefill, or with another number of rows than that had.
        """
        if self._cache is None or ids.shape != (len(self._lengths),):
            raise RuntimeError(f"decode of ids {list(ids.shape)} after a prefill of {len(self._lengths)} rows")
        check_ids(ids, self.config)
        check_decode(max(self._lengths) + 1, self.config, self.limits)
        logits = self._forward(ids[:, None], self._lengths, None)
        self._lengths = [length + 1 for length in self._lengths]
        return logits[:, 0]

    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """Logits of every position, with a cache of its own; a generation under way is not disturbed.

        Args:
            ids: ``[batch, seq]`` int64, rows of one length.
            on_tap: called with the name and tensor of every tap.

        Returns:
            ``[batch, seq, vocab]`` float32 (float64 in a float64 session).

        Raises:
            LimitError: more tokens than the model has positions, or an id outside the vocabulary.
        """
        check_ids(ids, self.config)
        check_positions(ids.shape[1], self.config)
        kept = self._cache, self.ops.on_tap
        self._cache, self.ops.on_tap = self._new_cache(ids.shape[0], ids.shape[1]), on_tap
        try:
            return self._forward(ids, [0] * ids.shape[0], None)
        finally:
            self._cache, self.ops.on_tap = kept

    def close(self) -> None:
        """Drop the cache, the weights and whatever the op set had prepared from them."""
        self._cache, self._lengths = None, []
        self.weights = ModelWeights([], None, None, None)
        self.model = InternLM(self.config, self.weights, self.model.rotary)
        self.ops = type(self.ops)(self.dtype)

    def _new_cache(self, batch: int, max_len: int) -> KVCache:
        layers = self.weights.layers
        # Float32 rows are the fastest to read on a CPU; what is written was rounded to the dtype before.
        dtype = torch.float32 if self.backend == "cpu" else self.dtype
        dtype = torch.int8 if layers and layers[0].kv_scales is not None else dtype
        return KVCache.allocate(self.config, batch, max_len, dtype, self.device)

    @torch.inference_mode()
    def _forward(self, ids: Tensor, start: list[int], last_token: Tensor | None) -> Tensor:
        """Logits ``[batch, 1 or seq, vocab]`` of new tokens ``[batch, seq]`` whose rows begin at ``start``."""
        assert self._cache is not None
        self._cache.reserve(max(start) + ids.shape[1])
        first = torch.tensor(start, dtype=torch.int32)
        positions = first.long()[:, None] + torch.arange(ids.shape[1])
        # Pads of a short row may lie beyond the last position; nothing reads them, so any position will do.
        positions.clamp_(max=self.config.max_position_embeddings - 1)
        step: Step[Tensor] = on_device(Step(ids, positions, first, last_token), self.device)
        output = self.model.forward(self.ops, step, self._cache.layers)
        self._cache.apply(output.updates, first)
        assert output.logits is not None
        return output.logits


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Prompts as rows ``[batch, longest]`` int64, filled up with zeros on the right, and their lengths."""
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.int64)
    return ids, lengths


def _check_backend(options: SessionOptions) -> None:
    if options.backend not in OP_SETS:
        raise BackendError(f"backend {options.backend!r}", allowed=", ".join(OP_SETS), fix="choose one of them")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device {options.device!r} is not there: torch finds no CUDA GPU", fix="use device 'cpu'")
    if options.backend == "cpu" and device.type != "cpu":
        raise BackendError(f"backend 'cpu' on device {options.device!r}", fix="use backend 'torch' for that device")
    if options.backend == "cpu" and options.dtype == torch.float64:
        raise BackendError(
            "backend 'cpu' in float64", allowed="float32, float16, bfloat16", fix="use backend 'torch' for float64"
        )
