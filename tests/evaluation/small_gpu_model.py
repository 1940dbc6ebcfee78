"""A model for the GPU's benchmark and tuning: InternLM-7B's form in the smallest widths that every kernel takes."""

from __future__ import annotations

from dataclasses import replace

from workbench.model.presets import PRESETS

SMALL = replace(
    PRESETS["internlm-7b"], hidden_size=256, intermediate_size=352, num_layers=2, num_heads=4, num_kv_heads=4,
    head_dim=64, vocab_size=320, eos_token_ids=(2,),
)  # fmt: skip
