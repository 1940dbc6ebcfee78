"""Operations of a step and of a prefill, counted by hand."""

from __future__ import annotations

from workbench.evaluation.gpu_work import prefill_flops, step_flops
from workbench.model.presets import PRESETS


def test_operations_are_two_a_weight_and_four_a_key_element() -> None:
    config = PRESETS["internlm-7b"]
    weights = 32 * (4096 * 12288 + 4096 * 4096 + 3 * 4096 * 11008) + 103168 * 4096
    assert step_flops(config, 3, 100) == 3 * (2 * weights + 4 * 32 * 4096 * 100)


def test_a_prefill_multiplies_the_head_once_a_prompt_and_looks_back_only() -> None:
    config = PRESETS["internlm-7b"]
    layers = 32 * (4096 * 12288 + 4096 * 4096 + 3 * 4096 * 11008)
    attention = 4 * 32 * 4096 * (1 + 2 + 3)
    assert prefill_flops(config, 5, 3) == 5 * (3 * 2 * layers + attention + 2 * 103168 * 4096)
