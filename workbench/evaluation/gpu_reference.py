"""Hugging Face's Llama in float16 on a GPU: what our decoding and prefill are timed beside. Knows no recipes.

Timed is ``generate`` as a user calls it: eager, or with a static cache, whose decoding step transformers compiles. Two
lengths of output are timed and their difference is taken, so that reading the prompt and starting up fall out.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, StaticCache

from workbench.backends.kernels.nvrtc import cache_dir, timer
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig
from workbench.model.weights import ModelWeights

# Tokens generated in the two runs whose difference is taken. An eager step takes ten times as long as a compiled one.
EAGER_LENGTHS = (2, 10)
COMPILED_LENGTHS = (8, 40)
ROUNDS = 2


class HuggingFaceDecoding:
    """One model in memory.

    Args:
        config: its sizes.
        weights: float16, not quantized; on the device they are not copied.
        device: a CUDA device.

    Attributes:
        weight_bytes: what a step reads of the weights (not the embedding).
        kv_bytes: keys and values of one token in all layers.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, device: torch.device) -> None:
        # Compiled kernels are kept beside ours, so that a second run need not compile them.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
        self.config, self.device = config, device
        model: Any = HFReference.from_weights(config, weights, torch.float16, device).model
        model.config._attn_implementation = "sdpa"
        self.model = model
        held = sum(parameter.nbytes for parameter in self.model.parameters())
        self.weight_bytes = held - self.model.get_input_embeddings().weight.nbytes
        self.kv_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim

    def step_ms(self, batch: int, context: int, *, compiled: bool) -> float:
        """Time of one decoding step of the batch, in milliseconds."""
        ids = self._random_ids(batch, context)
        short, long = COMPILED_LENGTHS if compiled else EAGER_LENGTHS
        # One cache for all runs: of another size, the step would be compiled again.
        cache: Any = StaticCache
        held = cache(config=self.model.config, max_cache_len=context + long) if compiled else None
        self._generate_ms(ids, short, held)  # warms up, and compiles
        times = [[self._generate_ms(ids, length, held) for length in (short, long)] for _ in range(ROUNDS)]
        return (statistics.median(run[1] for run in times) - statistics.median(run[0] for run in times)) / (
            long - short
        )

    def prefill_ms(self, batch: int, length: int) -> float:
        """Time that the eager model takes to read prompts, in milliseconds; only the last logits are computed."""
        ids = self._random_ids(batch, length)
        return statistics.median([self._forward_ms(ids) for _ in range(ROUNDS + 1)][1:])

    def _random_ids(self, batch: int, length: int) -> Tensor:
        return torch.randint(0, self.config.vocab_size, (batch, length), device=self.device)

    def _forward_ms(self, ids: Tensor) -> float:
        begin, end = timer(), timer()
        begin.record()
        with torch.inference_mode():
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def _generate_ms(self, ids: Tensor, length: int, cache: Any) -> float:
        generation: Any = GenerationConfig
        compilation: Any = CompileConfig
        settings = generation(
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
            max_length=None,
            # Of its own for each batch: a step for any batch would be slower.
            compile_config=None if cache is None else compilation(dynamic=False),
        )
        given: dict[str, Any] = {}
        begin, end = timer(), timer()
        with torch.inference_mode():
            if cache is not None:
                cache.reset()
                given["past_key_values"] = cache
            begin.record()
            self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, **given)
            end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def close(self) -> None:
        """Give the memory back, that of graphs which torch.compile recorded too."""
        del self.model
        torch.compiler.reset()
        torch.cuda.empty_cache()
