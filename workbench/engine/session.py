"""A TensorRT engine as a session: binding of buffers, profile switch, the KV cache in place, write-back of new rows.

The execution context is passed in. On a GPU it is TensorRT's own; :mod:`workbench.engine.interpreted` stands in for it
on a CPU. Buffers are torch tensors on ``device``; their addresses are all that the context sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.folder import EngineConfig, read_engine_config, require_version
from workbench.engine.network import DECODE_PROFILE, PREFILL_PROFILE
from workbench.engine.product import Product, cuda_capability, product_named
from workbench.errors import BackendError
from workbench.model.config import ModelConfig
from workbench.recipe import BuildLimits
from workbench.runtime.limits import check_decode, check_ids, check_prompts


class ExecutionContext(Protocol):
    """The calls that we make of TensorRT's ``IExecutionContext``; False or None means that it refused."""

    def set_optimization_profile_async(self, index: int, stream: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def execute_async_v3(self, stream: int) -> bool: ...


@dataclass(frozen=True)
class EngineShape:
    """What a session must know of the plan to bind its buffers.

    Attributes:
        config: the model's sizes.
        limits: of the plan's profiles.
        cache_dtype: of the KV cache's buffers.
        rows_only: the plan returns only the new rows of the cache, for us to write back.
        device: where buffers lie.
    """

    config: ModelConfig
    limits: BuildLimits
    cache_dtype: torch.dtype
    rows_only: bool
    device: torch.device


class EngineSession:
    """Token ids in, logits out, through an execution context.

    Args:
        context: TensorRT's, or its stand-in.
        shape: of the plan's inputs and outputs.
        keep_alive: whatever must outlive the context (runtime, engine).
    """

    backend = "tensorrt"

    def __init__(self, context: ExecutionContext, shape: EngineShape, keep_alive: tuple[Any, ...] = ()) -> None:
        self.config = shape.config
        self.limits = shape.limits
        self.shape = shape
        self._context: ExecutionContext | None = context
        self._keep_alive = keep_alive
        self._caches: dict[str, Tensor] = {}
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._profile: int | None = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Forget what came before and read prompts: ``[batch, vocab]`` float32, the logits after each last token.

        Raises:
            LimitError: a prompt, the batch or a token id beyond the engine's limits.
        """
        self._open()
        check_prompts(prompts, self.config, self.limits)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
        self._allocate(len(prompts))
        logits = self._run(PREFILL_PROFILE, ids, torch.zeros_like(lengths), lengths - 1)
        self._lengths = lengths
        return logits

    def decode(self, ids: Tensor) -> Tensor:
        """One more token for every row: ``[batch]`` integers -> ``[batch, vocab]`` float32.

        Raises:
            LimitError: the cache is full, or an id is outside the vocabulary.
            RuntimeError: before any prefill, with another number of rows than that had, or after ``close``.
        """
        if len(self._lengths) == 0 or ids.shape != self._lengths.shape:
            raise RuntimeError(f"decode of ids {list(ids.shape)} after a prefill of {len(self._lengths)} rows")
        check_ids(ids, self.config)
        check_decode(int(self._lengths.max()) + 1, self.config, self.limits)
        logits = self._run(DECODE_PROFILE, ids.cpu().int()[:, None], self._lengths, torch.zeros_like(self._lengths))
        self._lengths = self._lengths + 1
        return logits

    def close(self) -> None:
        """Free the context first, then the engine and the cache; the session is of no use afterwards."""
        self._context = None
        self._keep_alive = ()
        self._caches.clear()
        self._lengths = torch.zeros(0, dtype=torch.long)

    def _open(self) -> ExecutionContext:
        if self._context is None:
            raise RuntimeError("this session is closed")
        return self._context

    def _allocate(self, batch: int) -> None:
        config, limits = self.config, self.limits
        shape = (batch, config.num_kv_heads, limits.max_seq_len, config.head_dim)
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                held = self._caches.get(f"{part}.{layer}")
                if held is None or held.shape[0] != batch:
                    fresh = torch.zeros(shape, dtype=self.shape.cache_dtype, device=self.shape.device)
                    self._caches[f"{part}.{layer}"] = fresh

    def _run(self, profile: int, ids: Tensor, start: Tensor, last_token: Tensor) -> Tensor:
        """Bind everything, execute, write new rows back; ``[batch, vocab]``."""
        device, batch, seq = self.shape.device, ids.shape[0], ids.shape[1]
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        if profile != self._profile:
            self._require(self._open().set_optimization_profile_async(profile, stream), f"profile {profile}")
            self._profile = profile
        inputs = {
            "input_ids": ids.to(device),
            "position_ids": (start[:, None] + torch.arange(seq)).to(device),
            "start": start.int().to(device),
            "last_token": last_token.int().to(device),
        }
        logits = torch.empty(batch, 1, self.config.vocab_size, dtype=torch.float32, device=device)
        rows = self._bind_caches(batch, seq)
        for name, tensor in inputs.items():
            self._bind_input(name, tensor)
        self._bind("logits", logits)
        self._require(self._open().execute_async_v3(stream), "execution")
        self._write_back(rows, start, seq)
        return logits[:, 0]

    def _bind_caches(self, batch: int, seq: int) -> dict[str, Tensor]:
        """Bind each cache as input, and as output too or beside a buffer for its new rows; returns those buffers."""
        rows: dict[str, Tensor] = {}
        for place, cache in self._caches.items():
            self._bind_input(f"past_{place}", cache)
            if not self.shape.rows_only:
                self._bind(f"present_{place}", cache)
                continue
            rows[place] = torch.empty(
                batch, cache.shape[1], seq, cache.shape[3], dtype=cache.dtype, device=cache.device
            )
            self._bind(f"new_{place}", rows[place])
        return rows

    def _write_back(self, rows: dict[str, Tensor], start: Tensor, seq: int) -> None:
        if not rows:
            return
        batch = torch.arange(len(start))[:, None]
        positions = start[:, None] + torch.arange(seq)
        for place, new in rows.items():
            self._caches[place][batch, :, positions] = new.transpose(1, 2)

    def _bind_input(self, name: str, tensor: Tensor) -> None:
        self._require(self._open().set_input_shape(name, tuple(tensor.shape)), f"{name} {list(tensor.shape)}")
        self._bind(name, tensor)

    def _bind(self, name: str, tensor: Tensor) -> None:
        self._require(self._open().set_tensor_address(name, tensor.data_ptr()), f"the buffer of {name}")

    def _require(self, accepted: object, what: str) -> None:
        if not accepted:
            raise BackendError(
                f"TensorRT refused {what}", fix="build the engine again, or run its checkpoint with --backend cpu"
            )


def open_engine_session(folder: str | Path) -> EngineSession:
    """Deserialize an engine on this machine's GPU.

    Raises:
        BackendError: no GPU, one that the plan was not compiled for, or another TensorRT; says what is missing and
            which backend to use.
        CheckpointError: not an engine folder, or its plan or checkpoint is gone.
    """
    engine = read_engine_config(folder)
    product = require_runnable(engine)
    checkpoint = load_checkpoint(engine.checkpoint_dir)
    trt = product.trt
    logger = trt.Logger(trt.Logger.WARNING)
    runtime = trt.Runtime(logger)
    plan = runtime.deserialize_cuda_engine(engine.plan_path().read_bytes())
    if plan is None:
        raise BackendError(
            f"{product.name} {product.version} could not read {engine.plan_path()}",
            fix="build it again here, or run its checkpoint with --backend cpu",
        )
    from workbench.backends.tensorrt_types import torch_dtype

    shape = EngineShape(
        config=checkpoint.config,
        limits=engine.recipe.build,
        cache_dtype=torch_dtype(plan.get_tensor_dtype("past_key.0")),
        rows_only=any(plan.get_tensor_name(index) == "new_key.0" for index in range(plan.num_io_tensors)),
        device=torch.device("cuda"),
    )
    return EngineSession(plan.create_execution_context(), shape, (runtime, plan, logger))


def require_runnable(engine: EngineConfig) -> Product:
    """The TensorRT that runs an engine here; reads no plan.

    Raises:
        BackendError: no GPU, one that the plan was not compiled for, or another TensorRT.
    """
    _require_gpu(engine)
    product = product_named(engine.product)
    require_version(engine, product.name, product.version)
    return product


def _require_gpu(engine: EngineConfig) -> None:
    capability = cuda_capability()
    advice = "use --backend cpu, which runs the engine's checkpoint"
    if capability is None:
        raise BackendError(
            f"engine {engine.folder} needs a CUDA device, and this machine has none", allowed="cpu, torch", fix=advice
        )
    name = f"sm{capability[0]}{capability[1]}"
    if engine.targets and name not in engine.targets:
        raise BackendError(
            f"engine {engine.folder} was compiled for {', '.join(engine.targets)}, this GPU is {name}",
            allowed=f"build with --targets {name} where TensorRT supports it",
            fix=advice,
        )
