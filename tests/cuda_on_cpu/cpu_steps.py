"""The decode kernel on a CPU, over the weights and caches of a plain session that it is compared with."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.cuda_on_cpu.cuda_on_cpu import CpuKernel, compile_kernels
from tests.runtime.small_models import LIMITS
from workbench.backends.kernels.decode_shape import StepTuning
from workbench.backends.kernels.decode_step import DecodeStep, Machine, source
from workbench.backends.kernels.nvrtc import Launch
from workbench.backends.kernels.skinny_gemm import SkinnyLinear
from workbench.backends.triton_ops import PreparedLinear, TritonOps
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache
from workbench.model.rotary import rotary_tables
from workbench.model.weights import LinearWeight, ModelWeights, SmoothQuantWeight
from workbench.runtime.persistent_decode import step_model
from workbench.runtime.session import SessionOptions, TorchSession

HALF = torch.float16
SHARED_BYTES = 160 << 10


class PackingOps(TritonOps):
    """Every weight in its kernel's layout, wherever it lies."""

    def prepared(self, weight: LinearWeight) -> PreparedLinear:
        scale = weight.input_scale if isinstance(weight, SmoothQuantWeight) else None
        return PreparedLinear(SkinnyLinear(weight, torch.device("cpu")), input_scale=scale)


@functools.cache
def compiled(choices: tuple[str, ...], races: bool) -> CpuKernel:
    shared = next(int(choice.split("=")[1]) for choice in choices if choice.startswith("-DMAX_SHARED="))
    return compile_kernels(source(), choices, ["decode_step"], "Step", shared, races=races)["decode_step"]


@dataclass
class Pair:
    """A plain session after its prompts, and the kernel over copies of its caches."""

    plain: TorchSession
    step: DecodeStep
    caches: list[LayerCache[Tensor]]
    kernel: CpuKernel

    def run(self, seed: int) -> Tensor:
        """Logits of one step; what it has to write is NaN before."""
        self.kernel.seed = seed
        self.step.poison()
        self.step()
        return self.step.logits.clone()


def pair_of(
    config: ModelConfig,
    weights: ModelWeights,
    lengths: list[int],
    tuning: StepTuning,
    blocks: int,
    *,
    races: bool = False,
) -> Pair:
    """Prompts of these lengths, then the kernel as so many blocks; where asked to, it raises where it races."""
    plain = TorchSession(config, weights, SessionOptions(HALF, "torch", LIMITS))
    generator = torch.Generator().manual_seed(len(lengths))
    prompts = [torch.randint(0, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    logits = plain.prefill(prompts)
    assert plain._cache is not None
    caches = [LayerCache(layer.key.clone(), layer.value.clone()) for layer in plain._cache.layers]
    for cache in caches:
        _spoil(cache, lengths)
    model = step_model(InternLM(config, weights, rotary_tables(config, 64)), PackingOps(HALF, device="cpu"), caches)
    assert model is not None
    kernels: list[CpuKernel] = []

    def kernel(choices: tuple[str, ...]) -> Callable[[Launch, ctypes.Structure], None]:
        kernels.append(compiled(choices, races))
        return kernels[-1]

    machine = Machine(blocks, SHARED_BYTES, kernel)
    start = torch.tensor(lengths, dtype=torch.int32)
    return Pair(plain, DecodeStep(model, logits.argmax(-1), start, tuning, machine), caches, kernels[-1])


def _spoil(cache: LayerCache[Tensor], lengths: list[int]) -> None:
    """What lies beyond the rows that were written must not matter."""
    for tensor in (cache.key, cache.value):
        for row, length in enumerate(lengths):
            tensor[row, :, length:] = float("nan") if tensor.is_floating_point() else 77
