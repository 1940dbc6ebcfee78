"""Hugging Face's Llama with random float16 weights on a GPU: what our decoding is timed beside. Knows no recipes.

Timed is ``generate`` as a user calls it. Two lengths of output are timed and their difference is taken, so that reading
the prompt and starting up fall out.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM

from workbench.backends.kernels.nvrtc import timer
from workbench.evaluation.hf_reference import llama_config
from workbench.model.config import ModelConfig

SHORT, LONG = 8, 24
ROUNDS = 2


class HuggingFaceDecoding:
    """One model in memory.

    Attributes:
        weight_bytes: what a step reads of the weights (not the embedding).
        kv_bytes: keys and values of one token in all layers.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        try:
            with device:
                model: Any = LlamaForCausalLM(llama_config(config))
        finally:
            torch.set_default_dtype(before)
        model.config._attn_implementation = "sdpa"
        self.model = model.eval().requires_grad_(False)
        held = sum(parameter.nbytes for parameter in self.model.parameters())
        self.weight_bytes = held - self.model.get_input_embeddings().weight.nbytes
        self.kv_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim

    def step_ms(self, batch: int, context: int, *, compiled: bool) -> float:
        """Time of one decoding step of the batch, in milliseconds."""
        ids = torch.randint(0, self.config.vocab_size, (batch, context), device=self.device)
        lengths = (SHORT, LONG)
        times: dict[int, list[float]] = {length: [] for length in lengths}
        for turn in range(ROUNDS + 1):
            for length in lengths:
                elapsed = self._generate_ms(ids, length, compiled=compiled)
                if turn:  # the first round warms up
                    times[length].append(elapsed)
        return (statistics.median(times[LONG]) - statistics.median(times[SHORT])) / (LONG - SHORT)

    def _generate_ms(self, ids: Tensor, length: int, *, compiled: bool) -> float:
        generation: Any = GenerationConfig
        settings = generation(
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation="static" if compiled else None,
            max_length=None,
        )
        begin, end = timer(), timer()
        begin.record()
        with torch.inference_mode():
            self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def close(self) -> None:
        """Give the memory back."""
        del self.model
        torch.cuda.empty_cache()
