"""A session on one NVIDIA GPU: decoding is a CUDA graph over a cache whose place in memory never changes.

A graph is captured for each batch rounded up to a bucket. Greedy decoding stays on the device: the graph chooses the
next ids itself and reads them in its next replay, so the host need not wait for a token to ask for the one after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.backends.kernels import require_gpu
from workbench.backends.kernels.choice import choose_most_probable
from workbench.backends.kernels.decode_shape import StepTuning
from workbench.backends.kernels.decode_step import DecodeStep, compared
from workbench.backends.torch_ops import TapSink
from workbench.backends.triton_ops import TritonOps
from workbench.errors import LimitError
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, Step
from workbench.model.rotary import RotaryTables, rotary_tables
from workbench.model.weights import KVScales, LayerWeights, ModelWeights
from workbench.recipe import BuildLimits
from workbench.runtime.decoding_state import Decoding, bucket_of
from workbench.runtime.device_sampling import DeviceSampler, fetched
from workbench.runtime.limits import check_decode, check_ids, check_positions, check_prompts, sequence_limit
from workbench.runtime.persistent_decode import prepared_kernel
from workbench.runtime.session import padded

if TYPE_CHECKING:
    from workbench.checkpoint.unified import Checkpoint
    from workbench.runtime.sampling import SamplingOptions

ROOM = 256  # rows of a cache come in multiples of this, and it begins with as many for what nobody announced


@dataclass(frozen=True)
class CudaOptions:
    """How a :class:`CudaSession` runs.

    Attributes:
        dtype: of activations: float16 (kernels for every weight type), bfloat16 or float32.
        limits: longest prompt, output and largest batch. The cache grows up to them.
        device: a CUDA device.
        graphs: replay decoding as a CUDA graph; without, every kernel is launched on its own.
        one_kernel: decode few rows in one kernel, where model and GPU allow it and it is faster (``MOST_ROWS``);
            without, operation by operation.
            By default where the present kernel was compared on a GPU.
    """

    dtype: torch.dtype = torch.float16
    limits: BuildLimits = field(default_factory=BuildLimits)
    device: str = "cuda"
    graphs: bool = True
    one_kernel: bool = field(default_factory=compared)


class CudaSession:
    """One model on :class:`~workbench.backends.triton_ops.TritonOps`; see :class:`~workbench.runtime.session.Session`.

    Args:
        config: the model's sizes.
        weights: all layers, the embedding and the head, on any device. Layers are packed one by one as they are read,
            so a lazy sequence never lies in memory as a whole.
        options: dtype, limits and device.

    Raises:
        BackendError: no CUDA device, or no Triton.
    """

    backend = "triton"

    def __init__(self, config: ModelConfig, weights: ModelWeights, options: CudaOptions) -> None:
        require_gpu("backend 'triton'")
        self.config, self.limits, self.options = config, options.limits, options
        self.device = torch.device(options.device)
        self.ops = TritonOps(options.dtype, device=self.device)
        self.max_len = sequence_limit(config, options.limits)
        tables = rotary_tables(config, config.max_position_embeddings)
        rotary = RotaryTables(tables.cos.to(self.device), tables.sin.to(self.device))
        self.model = InternLM(config, self._packed(weights), rotary)
        self._decoding: Decoding | None = None
        self._lengths: list[int] = []

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> CudaSession:
        """A session with the dtype and limits of the checkpoint's recipe."""
        dtype: torch.dtype = getattr(torch, checkpoint.recipe.dtype)
        return cls(checkpoint.config, checkpoint.weights, CudaOptions(dtype, checkpoint.recipe.build))

    def _packed(self, weights: ModelWeights) -> ModelWeights:
        """The same weights with linear layers in the op set's hands and everything else on the device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.device, self.options.dtype)

        head = weights.lm_head
        return ModelWeights(
            layers=[self._packed_layer(layer) for layer in weights.layers],
            embedding=moved(weights.embedding),
            final_norm=moved(weights.final_norm),
            lm_head=None if head is None else self.ops.adopt(head),
        )

    def _packed_layer(self, layer: LayerWeights) -> LayerWeights:
        adopt, scales = self.ops.adopt, layer.kv_scales
        return replace(
            layer,
            attention_norm=layer.attention_norm.to(self.device, self.options.dtype),
            mlp_norm=layer.mlp_norm.to(self.device, self.options.dtype),
            qkv=adopt(layer.qkv),
            o=adopt(layer.o),
            gate_up=adopt(layer.gate_up),
            down=adopt(layer.down),
            kv_scales=None
            if scales is None
            else KVScales(scales.key.to(self.device).contiguous(), scales.value.to(self.device).contiguous()),
        )

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache of the batch at hand."""
        return 0 if self._decoding is None else self._decoding.cache_bytes

    @property
    def decodes_in_one_kernel(self) -> bool:
        """Whether the batch at hand does."""
        return self._decoding is not None and self._decoding.kernel is not None

    @property
    def kv_bytes_per_token(self) -> int:
        """What one token's keys and values take in all layers."""
        width = 1 if self._int8_cache else self.options.dtype.itemsize
        return 2 * width * self.config.num_layers * self.config.num_kv_heads * self.config.head_dim

    @property
    def _int8_cache(self) -> bool:
        layers = self.model.weights.layers
        return bool(layers) and layers[0].kv_scales is not None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`~workbench.runtime.session.Session.prefill`. Rows are padded on the right; no row reads a pad."""
        return self._prefill(prompts, ROOM)

    def _prefill(self, prompts: Sequence[Sequence[int]], output_len: int) -> Tensor:
        check_prompts(prompts, self.config, self.limits)
        ids, lengths = padded(prompts)
        held = self._room_for(len(prompts), max(lengths) + output_len)
        caches = [LayerCache(cache.key[: len(prompts)], cache.value[: len(prompts)]) for cache in held.caches]
        last = torch.tensor(lengths, dtype=torch.int32)
        logits = self._from_scratch(ids, caches, last - 1)[:, 0]
        held.start.zero_()
        held.start[: len(prompts)] = last.to(self.device)
        held.ids[: len(prompts)] = logits.argmax(-1)
        self._lengths = lengths
        return logits

    @torch.inference_mode()
    def decode(self, ids: Tensor) -> Tensor:
        """See :meth:`~workbench.runtime.session.Session.decode`.

        Raises:
            RuntimeError: before any prefill, or with another number of rows than that had.
        """
        held = self._decoding
        if held is None or ids.shape != (len(self._lengths),):
            raise RuntimeError(f"decode of ids {list(ids.shape)} after a prefill of {len(self._lengths)} rows")
        check_ids(ids, self.config)
        held.ids[: len(ids)] = ids.to(self.device)
        self.decode_greedy()
        return self._logits(len(ids)).clone()

    def tokens(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, max_output_len: int
    ) -> Iterator[list[int]]:
        """See :meth:`~workbench.runtime.session.TokenSession.tokens`: the host never waits for the newest step."""
        return fetched(self._choices(prompts, sampling, max_output_len))

    def _choices(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, max_output_len: int
    ) -> Iterator[Tensor]:
        """What a sampler says after each step."""
        rows = len(prompts)
        with torch.inference_mode():
            logits = self._prefill(prompts, max_output_len)
            sampler = DeviceSampler(
                sampling, prompts, steps=max_output_len, vocab=self.config.vocab_size, device=self.device
            )
        for step in range(max_output_len):
            if step:
                self.decode_greedy()
                logits = self._logits(rows)
            with torch.inference_mode():
                chosen = sampler.choose(logits)
                assert self._decoding is not None
                self._decoding.ids[:rows] = chosen
            yield sampler.told

    def _logits(self, rows: int) -> Tensor:
        """``[rows, vocab]`` float32: those of the step that was asked for last, overwritten by the next."""
        assert self._decoding is not None
        assert self._decoding.logits is not None
        return self._decoding.logits[:rows]

    @torch.inference_mode()
    def decode_greedy(self) -> Tensor:
        """One more token for every row: the most probable one after the last call's logits. Waits for nothing.

        Returns:
            int64 ``[batch]`` on the device: the tokens chosen after this step, which the next call reads. The tensor is
            overwritten then.

        Raises:
            LimitError: the cache or the model's positions are used up.
            RuntimeError: before any prefill.
        """
        held = self._decoding
        if held is None or not self._lengths:
            raise RuntimeError("decoding before any prefill")
        needed = max(self._lengths) + 1
        check_decode(needed, self.config, self.limits)
        if needed > held.max_len:
            held = self._grown(held, needed)
        if held.graph is None and self.options.graphs:
            self._capture(held)
        if held.graph is not None:
            held.graph.replay()
        else:
            self._step(held)
        self._lengths = [length + 1 for length in self._lengths]
        return held.ids[: len(self._lengths)]

    @torch.inference_mode()
    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """Logits of every position; see :meth:`~workbench.runtime.session.TorchSession.logits`."""
        check_ids(ids, self.config)
        check_positions(ids.shape[1], self.config)
        self.ops.on_tap = on_tap
        try:
            return self._from_scratch(ids, self._new_caches(ids.shape[0], ids.shape[1]), None)
        finally:
            self.ops.on_tap = None

    @torch.inference_mode()
    def fill_randomly(self, batch: int, length: int) -> None:
        """The state after ``batch`` prompts of ``length`` tokens that nobody read: for timing :meth:`decode_greedy`."""
        held = self._room_for(batch, self.max_len)
        for cache in held.caches:
            for tensor in (cache.key, cache.value):
                _randomize(tensor[:, :, :length])
        held.start.fill_(length)
        held.ids.random_(self.config.vocab_size)
        self._lengths = [length] * batch

    def one_kernel(self, tuning: StepTuning) -> DecodeStep | None:
        """The kernel over the batch at hand, tuned otherwise than the one in use, for measurements. None without it."""
        held = self._decoding
        if held is None:
            return None
        return prepared_kernel(self.model, self.ops, held.caches, (held.ids.clone(), held.start.clone()), tuning)

    def close(self) -> None:
        """Give memory back; the session is of no use afterwards."""
        self._decoding, self._lengths = None, []
        self.model = InternLM(self.config, ModelWeights([], None, None, None), self.model.rotary)
        self.ops = TritonOps(self.options.dtype, device=self.device)

    def _new_caches(self, batch: int, rows: int) -> list[LayerCache[Tensor]]:
        dtype = torch.int8 if self._int8_cache else self.options.dtype
        shape = (batch, self.config.num_kv_heads, rows, self.config.head_dim)

        def empty() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        return [LayerCache(empty(), empty()) for _ in self.model.weights.layers]

    def resize(self, limits: BuildLimits) -> None:
        """Other limits; the cache is dropped and made anew by the next prefill."""
        self._decoding, self._lengths, self.limits = None, [], limits
        self.max_len = sequence_limit(self.config, limits)

    def _room_for(self, batch: int, needed: int) -> Decoding:
        """The state of this batch's bucket, with room for so many tokens of a row, or as many as there may be.

        Only one bucket's is kept: caches are most of the memory.
        """
        bucket = bucket_of(batch, self.limits.max_batch_size)
        needed = min(-(-needed // ROOM) * ROOM, self.max_len)
        if self._decoding is None or self._decoding.bucket != bucket or self._decoding.max_len < needed:
            self._decoding = None
            ids = torch.zeros(bucket, dtype=torch.int64, device=self.device)
            start = torch.zeros(bucket, dtype=torch.int32, device=self.device)
            self._decoding = self._ready(Decoding(self._allocated(bucket, needed), ids, start))
        return self._decoding

    def _grown(self, held: Decoding, needed: int) -> Decoding:
        """The same state with twice the room, as far as there may be; its step is captured anew."""
        try:
            caches = self._allocated(held.bucket, min(max(needed, 2 * held.max_len), self.max_len))
        except LimitError:  # old and new are held together: a little more may fit where twice as much does not
            caches = self._allocated(held.bucket, min(-(-needed // ROOM) * ROOM, self.max_len))
        for old, new in zip(held.caches, caches, strict=True):
            new.key[:, :, : held.max_len] = old.key
            new.value[:, :, : held.max_len] = old.value
        self._decoding = self._ready(Decoding(caches, held.ids, held.start))
        return self._decoding

    def _ready(self, held: Decoding) -> Decoding:
        if self.options.one_kernel:
            held.kernel = prepared_kernel(self.model, self.ops, held.caches, (held.ids, held.start))
        return held

    def _allocated(self, bucket: int, rows: int) -> list[LayerCache[Tensor]]:
        try:
            return self._new_caches(bucket, rows)
        except torch.cuda.OutOfMemoryError as error:
            size = self.kv_bytes_per_token * bucket * rows
            raise LimitError(
                f"a KV cache of {bucket} x {rows} tokens takes {size / 1e9:.1f} GB, which the GPU does not have free",
                fix="run fewer prompts at once, or shorter ones, or convert with an INT8 KV cache",
            ) from error

    def _from_scratch(self, ids: Tensor, caches: list[LayerCache[Tensor]], last_token: Tensor | None) -> Tensor:
        """Logits ``[batch, 1 or seq, vocab]`` of rows that all begin at position 0."""
        batch, seq = ids.shape
        positions = torch.arange(seq, device=self.device).expand(batch, seq).contiguous()
        start = torch.zeros(batch, dtype=torch.int32, device=self.device)
        last = None if last_token is None else last_token.to(self.device)
        self.ops.from_scratch = True
        try:
            output = self.model.forward(self.ops, Step(ids.to(self.device), positions, start, last), caches)
        finally:
            self.ops.from_scratch = False
        logits: Tensor | None = output.logits
        assert logits is not None
        return logits

    def _step(self, held: Decoding) -> None:
        """One decoding step of the whole bucket; rows beyond the batch compute what nobody reads."""
        if held.kernel is not None:
            held.kernel()
            held.logits = held.kernel.logits
            return
        ids = held.ids[:, None]
        output = self.model.forward(self.ops, Step(ids, ids, held.start), held.caches)
        assert output.logits is not None
        held.logits = output.logits[:, 0]
        choose_most_probable(held.logits, held.ids, held.start, overlap=self.ops.overlap)

    def _capture(self, held: Decoding) -> None:
        """Run a step once, so that its kernels are compiled, undo it, and record it."""
        ids, start = held.ids.clone(), held.start.clone()
        stream: Any = torch.cuda.Stream
        side = stream(self.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(held)
        torch.cuda.current_stream().wait_stream(side)
        # The row that the step wrote into the cache is written again by the step that is replayed.
        held.ids.copy_(ids)
        held.start.copy_(start)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: in a notebook another one may allocate memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(held)
        held.graph = graph


def _randomize(tensor: Tensor) -> None:
    if tensor.dtype == torch.int8:
        tensor.random_(-127, 128)
    else:
        tensor.normal_()
