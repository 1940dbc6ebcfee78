"""A plan says what the commands themselves go by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.checkpoint.dummy_checkpoint import write_dummy_checkpoint
from workbench.checkpoint.dummy_model import DummyModel
from workbench.engine.needs import build_needs
from workbench.engine.prepare import build_job
from workbench.errors import RecipeError, WorkbenchError
from workbench.evaluation.plan import PlanOptions, Ranks, mode_name, plan_checkpoint, plan_source
from workbench.model.presets import PRESETS, Sizes, resized
from workbench.quantization.convert import convert, plan_conversion
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant

SMALL = resized(
    PRESETS["internlm2-7b"],
    Sizes(n_layer=3, n_embd=128, n_head=4, n_kv_head=2, inter_size=320, vocab_size=512, n_positions=64),
)


def test_every_mode_is_a_row() -> None:
    plan = plan_source(DummyModel(PRESETS["internlm-7b"]), Recipe())
    assert [mode.name for mode in plan.modes] == [
        *("float16", "int8", "int4 group 128", "smoothquant per token", "int8 + int8 KV"),
    ]
    assert plan.parameters == 7_321_948_160
    sizes = [mode.rank_bytes[0] for mode in plan.modes]
    assert sizes[0] == 14_643_896_320
    assert sizes[2] < sizes[1] < sizes[0]
    json.dumps(plan.to_dict())


def test_the_figures_are_those_of_the_commands() -> None:
    model, recipe = DummyModel(SMALL), Recipe(weights=Int8WeightOnly())
    (mode,) = plan_source(model, recipe, PlanOptions(every_mode=False)).modes
    conversion = plan_conversion(model, recipe)
    assert (mode.convert_disk_bytes, mode.convert_memory_bytes) == (conversion.disk_bytes, conversion.memory_bytes)
    assert mode.build == build_needs(build_job(SMALL, recipe, "auto", dummy=True))


def test_the_disk_is_what_a_conversion_writes(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    recipe = Recipe(weights=Int4WeightOnly(group_size=32))
    plan = plan_source(str(random_model_dir()), recipe, PlanOptions(every_mode=False))
    convert(random_model_dir(), recipe, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    stored = (tmp_path / "out" / "rank0.safetensors").stat().st_size
    planned = plan.modes[0].convert_disk_bytes
    assert planned is not None
    assert stored < written <= planned


def test_parts_add_up_to_the_model() -> None:
    for mode in plan_source(DummyModel(SMALL), Recipe()).modes:
        assert sum(part.bytes for part in mode.parts) == mode.rank_bytes[0]
        assert {part.part for part in mode.parts} == {
            *("embedding", "attention.qkv", "attention.o", "mlp.gate_up", "mlp.down", "lm_head", "norms"),
        }


def test_every_rank_is_counted() -> None:
    plan = plan_source(DummyModel(SMALL), Recipe(), PlanOptions(Ranks(2, 3), every_mode=False))
    (mode,) = plan.modes
    assert len(mode.rank_bytes) == 6
    assert mode.rank_bytes[0] == mode.rank_bytes[1] > mode.rank_bytes[2]
    alone = plan_source(DummyModel(SMALL), Recipe(), PlanOptions(every_mode=False)).modes[0]
    assert mode.build.builder_bytes < alone.build.builder_bytes
    assert mode.run.kv_bytes_per_token == alone.run.kv_bytes_per_token // 6


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(WorkbenchError, match="2 key/value heads over tp_size 4"):
        plan_source(DummyModel(SMALL), Recipe(), PlanOptions(Ranks(4, 1)))


def test_a_recipe_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="layers 0 to 2"):
        plan_source(DummyModel(SMALL), Recipe(weights=Int8WeightOnly(), keep=("layers.9.mlp.down",)))


def test_a_checkpoint_has_one_mode_and_is_converted(tmp_path: Path) -> None:
    recipe = Recipe(weights=SmoothQuant(), kv_cache=Int8KVCache())
    checkpoint = write_dummy_checkpoint(tmp_path / "dummy", SMALL, recipe)
    plan = plan_checkpoint(checkpoint.config, checkpoint.recipe, held_bytes=checkpoint.held_bytes)
    (mode,) = plan.modes
    assert mode.name == "smoothquant per token + int8 KV"
    assert mode.convert_disk_bytes is None
    assert mode.build.held_bytes == checkpoint.held_bytes
    assert plan.parameters == plan_source(DummyModel(SMALL), Recipe()).parameters


def test_modes_are_named_by_what_tells_them_apart() -> None:
    assert mode_name(Recipe(dtype="bfloat16")) == "bfloat16"
    assert mode_name(Recipe(weights=Int4WeightOnly(group_size=0))) == "int4 per channel"
    assert mode_name(Recipe(weights=SmoothQuant(activation="per_tensor"))) == "smoothquant per tensor"


def test_nothing_heavy_is_imported() -> None:
    """Neither tables, nor Hugging Face, nor TensorRT: a plan answers at once."""
    code = (
        "import sys, workbench.cli.main as it; it.main(['plan', '--preset', 'internlm-20b']);"
        "heavy = {'pandas', 'transformers', 'tensorrt_rtx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
