"""What running is said to need; the constants are measured, not tested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.checkpoint.rank_parts import rank_parts, total_bytes
from workbench.model.presets import PRESETS
from workbench.parallel.mapping import Mapping
from workbench.recipe import BuildLimits, Int8KVCache, Recipe, SmoothQuant
from workbench.runtime.needs import RunJob, activation_bytes, rank_kv_bytes_per_token, run_needs

SEVEN = PRESETS["internlm-7b"]
LIMITS = BuildLimits(max_batch_size=4, max_input_len=1000, max_output_len=24)
RECIPE = Recipe(build=LIMITS)


def test_a_token_takes_keys_and_values_of_every_layer() -> None:
    assert rank_kv_bytes_per_token(RunJob(SEVEN, RECIPE)) == 2 * 32 * 32 * 128 * 2
    assert rank_kv_bytes_per_token(RunJob(SEVEN, replace(RECIPE, kv_cache=Int8KVCache()))) == 2 * 32 * 32 * 128
    assert rank_kv_bytes_per_token(RunJob(PRESETS["internlm3-8b"], RECIPE)) == 2 * 48 * 2 * 128 * 2
    ranks = [rank_kv_bytes_per_token(RunJob(SEVEN, RECIPE, Mapping(2, 3, rank))) for rank in range(6)]
    assert ranks == [2 * layers * 16 * 128 * 2 for layers in (11, 11, 11, 11, 10, 10)]


def test_a_gpu_holds_weights_cache_and_activations() -> None:
    found = run_needs(RunJob(SEVEN, RECIPE))
    weights = total_bytes(rank_parts(SEVEN, RECIPE))
    assert found.weight_bytes == weights
    cache = 4 * 1024 * found.kv_bytes_per_token
    assert found.gpu_bytes == weights + cache + activation_bytes(RunJob(SEVEN, RECIPE))


@pytest.mark.parametrize(
    ("preset", "weights", "stated"),
    [
        # What TensorRT for RTX 1.7.1 states for a batch of 8 prompts of 1536 tokens.
        ("internlm-7b", None, 1_174_929_408),
        ("internlm-7b", SmoothQuant(), 1_580_826_624),
        ("internlm2-20b", None, 1_718_000_000),
    ],
)
def test_activations_are_what_the_builder_states(preset: str, weights: SmoothQuant | None, stated: int) -> None:
    recipe = Recipe(weights=weights, build=BuildLimits(8, 1536, 512))
    assert activation_bytes(RunJob(PRESETS[preset], recipe)) == pytest.approx(stated, rel=0.05)


def test_a_cpu_holds_a_packed_copy_and_a_wide_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import workbench.runtime.needs as needs

    monkeypatch.setattr(needs, "can_pack", lambda _: True)
    packed = run_needs(RunJob(SEVEN, RECIPE)).cpu_bytes
    shorter = replace(RECIPE, build=BuildLimits(4, 1000, 8))
    assert packed - run_needs(RunJob(SEVEN, shorter)).cpu_bytes == 4 * 16 * 2 * 32 * 32 * 128 * 4
    assert packed > total_bytes(rank_parts(SEVEN, RECIPE)) - 103168 * 4096 * 2
    monkeypatch.setattr(needs, "can_pack", lambda _: False)
    assert run_needs(RunJob(SEVEN, RECIPE)).cpu_bytes < packed / 2
