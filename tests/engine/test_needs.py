"""What a build is said to need, and what is refused. The figures themselves are measured, not tested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.checkpoint.rank_parts import rank_parts, total_bytes
from workbench.engine import needs
from workbench.engine.needs import BuildJob, build_needs, how_verified, require_build_memory, sampled_layers
from workbench.errors import ResourceError
from workbench.model.presets import PRESETS
from workbench.parallel.mapping import Mapping
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant

CONFIG = PRESETS["internlm-7b"]
DENSE = BuildJob(CONFIG, Recipe(), verify="off")
LARGE = BuildJob(PRESETS["internlm-20b"], Recipe(), verify="off")


def with_memory(monkeypatch: pytest.MonkeyPatch, size_bytes: float | None) -> None:
    monkeypatch.setattr(needs, "available_bytes", lambda: None if size_bytes is None else round(size_bytes))


def refusal(job: BuildJob) -> str:
    with pytest.raises(ResourceError) as caught:
        require_build_memory(job)
    return str(caught.value)


def test_a_builder_holds_one_copy_of_dense_weights_and_two_of_int8() -> None:
    weights = total_bytes(rank_parts(CONFIG, Recipe()))
    dense = build_needs(DENSE)
    assert weights < dense.builder_bytes < 1.1 * weights
    assert dense.memory_bytes == dense.builder_bytes
    assert weights <= dense.disk_bytes < 1.01 * weights
    int8 = Recipe(weights=Int8WeightOnly())
    integers = sum(part.bytes for part in rank_parts(CONFIG, int8) if part.kind == "int8")
    more = build_needs(replace(DENSE, recipe=int8)).builder_bytes - total_bytes(rank_parts(CONFIG, int8))
    assert integers < more < 1.1 * integers


def test_what_no_file_backs_comes_on_top() -> None:
    held = build_needs(replace(DENSE, held_bytes=1000))
    assert held.memory_bytes == build_needs(DENSE).memory_bytes + 1000


def test_the_folder_with_its_checkpoint_is_twice_as_large() -> None:
    both = build_needs(replace(DENSE, with_checkpoint=True)).disk_bytes
    assert both == pytest.approx(2 * build_needs(DENSE).disk_bytes, rel=0.001)


def test_a_sampled_check_does_not_grow_with_the_layers() -> None:
    deep = replace(CONFIG, num_layers=64)
    whole, sample = (build_needs(BuildJob(deep, Recipe(), verify)).check_bytes for verify in ("full", "sample"))
    assert sample == build_needs(BuildJob(CONFIG, Recipe(), "sample")).check_bytes < 5e9
    assert whole > 2 * sample


def test_the_check_is_over_before_the_builder_starts() -> None:
    few = BuildJob(replace(CONFIG, num_layers=1), Recipe(weights=Int4WeightOnly()), "full")
    found = build_needs(few)
    assert found.check_bytes > found.builder_bytes
    assert found.memory_bytes == found.check_bytes


def test_large_models_are_sampled_unless_told_otherwise() -> None:
    assert how_verified(CONFIG, "auto") == "sample"
    assert how_verified(replace(CONFIG, num_layers=1), "auto") == "sample" != how_verified(CONFIG, "full")
    assert how_verified(replace(CONFIG, num_layers=1, vocab_size=512), "auto") == "full"
    assert [sampled_layers(count) for count in (1, 2, 32)] == [[0], [0, 1], [0, 16, 31]]


def test_fp16_of_seven_billion_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 12e9)
    told = refusal(DENSE)
    assert told.startswith("a build of 14.6 GB of weights (at its peak TensorRT's builder) needs about 15.")
    assert "12.0 GB are available; what fits: --weights int4 (" in told
    assert "--weights int8" not in told
    assert "or --world_size 2 --tp_size 2 --pp_size 1 (8." in told
    assert told.endswith("GB a rank)")
    with_memory(monkeypatch, 16e9)
    require_build_memory(DENSE)


def test_more_ranks_are_proposed_where_two_do_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 13e9)
    assert "--world_size 4 --tp_size 4 --pp_size 1" in refusal(LARGE)
    # Two key/value heads leave stages alone.
    few_heads = replace(LARGE, config=replace(LARGE.config, num_heads=40, num_kv_heads=2))
    assert "--world_size 4 --tp_size 2 --pp_size 2" in refusal(few_heads)


def test_the_check_is_left_out_where_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 3e9)
    told = refusal(BuildJob(replace(CONFIG, num_layers=1), Recipe(), "sample"))
    assert "(at its peak the network check) needs about 3." in told
    assert "what fits: --verify off (2.3 GB)" in told


def test_where_nothing_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1e8)
    assert refusal(LARGE).endswith("are available; build it on a machine with more memory")


def test_a_system_that_does_not_tell_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, None)
    require_build_memory(LARGE)


def test_a_rank_needs_less_than_the_whole() -> None:
    ranks = [build_needs(replace(LARGE, mapping=Mapping(2, 2, rank))).builder_bytes for rank in range(4)]
    assert max(ranks) < build_needs(LARGE).builder_bytes / 3
    assert build_needs(replace(LARGE, recipe=Recipe(weights=SmoothQuant()))).builder_bytes < 23e9
