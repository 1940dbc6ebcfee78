"""What a bench can open: by which names, how long it stays open, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import weakref

import pytest
import torch

from workbench.bench import models as models_module
from workbench.bench.bench import Bench
from workbench.bench.models import HUGGING_FACE, describe
from workbench.bench.open_session import OpenedSession, open_session
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.folder import EngineConfig, write_engine_config
from workbench.engine.interpreted_model import InterpretedModel
from workbench.errors import BackendError, CheckpointError, LimitError, RecipeError, WorkbenchError
from workbench.evaluation import memory
from workbench.quantization.convert import convert
from workbench.recipe import BuildLimits, Int4WeightOnly, Int8KVCache, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.session import TorchSession

INT8 = Recipe(dtype="bfloat16", weights=Int8WeightOnly())
PLAIN = Recipe(dtype="bfloat16")


@pytest.fixture
def bench(random_model_dir, tmp_path):
    return Bench(random_model_dir(), INT8, cache_dir=tmp_path / "cache", device="cpu")


@pytest.fixture
def checkpoint(random_model_dir, tmp_path):
    convert(random_model_dir(), PLAIN, tmp_path / "plain")
    return tmp_path / "plain"


def _engine(folder, checkpoint, product="tensorrt_rtx"):
    """An engine's folder without a plan: what can be had of it without a GPU needs none."""
    held = load_checkpoint(checkpoint)
    limits = BuildLimits(max_batch_size=1, max_input_len=8, max_output_len=4)
    recipe = dataclasses.replace(held.recipe, build=limits)
    folder.mkdir()
    write_engine_config(folder, EngineConfig(folder, product, "0", ("sm80",), recipe, checkpoint, held.checksum), {})
    return folder


def test_hugging_face_and_the_recipe_are_always_at_hand(bench):
    assert bench.models.choices() == {"Hugging Face": HUGGING_FACE, "the recipe as it is": None}
    reference, candidate = bench.models.sides(HUGGING_FACE, None)
    assert (reference.name, reference.precision, reference.checkpoint) == ("Hugging Face float32", "float32", None)
    assert (candidate.name, candidate.precision) == ("INT8 weights, bfloat16", "int8")
    assert candidate.checkpoint.recipe.weights == Int8WeightOnly()
    ids = torch.tensor([[5, 9, 11]])
    assert reference.model.logits(ids).shape == candidate.model.logits(ids).shape


def test_what_was_made_before_is_offered_the_last_first(bench):
    bench.checkpoint(INT8)
    bench.checkpoint(PLAIN)
    found = bench.models.choices()
    assert list(found)[2:] == ["made before: bfloat16", "made before: INT8 weights, bfloat16"]
    folder = found["made before: bfloat16"]
    side, _ = bench.models.sides(folder, None)
    assert side.name == "bfloat16"
    (folder / "config.json").unlink()
    assert "made before: bfloat16" not in bench.models.choices()


def test_a_model_is_opened_once(bench):
    first = bench.models.sides(HUGGING_FACE, None)
    again = bench.models.sides(HUGGING_FACE, INT8)
    assert first[0].model is again[0].model
    assert first[1].model is again[1].model
    assert bench.models.speakers([HUGGING_FACE, None])[1].session is first[1].model


def test_only_the_last_few_stay_open(bench):
    _, int8 = bench.models.sides(HUGGING_FACE, INT8)
    bench.models.sides(HUGGING_FACE, PLAIN)
    bench.models.sides(HUGGING_FACE, Recipe(dtype="float16"))
    assert len(bench.models._open) == models_module.KEPT_OPEN
    assert int8.model.weights.layers == []  # closed
    bench.models.close()
    assert bench.models._open == {}


@pytest.fixture
def free(monkeypatch):
    """``free(1000)``: from now on so many bytes are free on every device, whatever is closed."""

    def set_free(count):
        for module in (models_module, memory):
            monkeypatch.setattr(module, "free_bytes", lambda _device: count)

    return set_free


def test_what_is_in_use_is_not_closed_for_memory(bench, free):
    bench.models.sides(PLAIN, INT8)
    free(2 * memory.parameters(bench.config))
    candidate, reference = bench.models.sides(INT8, HUGGING_FACE)
    assert len(candidate.model.weights.layers) == 2
    assert len(bench.models._open) == 2  # the plain one made room
    assert reference.name == "Hugging Face bfloat16"
    assert reference.model.reference.dtype == torch.bfloat16


def test_a_recipe_that_needs_ranges_says_so(bench):
    with pytest.raises(RecipeError, match="needs ranges"):
        bench.models.sides(HUGGING_FACE, Recipe(dtype="bfloat16", weights=SmoothQuant()))


@pytest.mark.parametrize("text", ["{}", " {}/ "])
def test_a_folder_by_its_name(bench, checkpoint, text):
    side, _ = bench.models.sides(text.format(checkpoint), None)
    assert side.name == "plain: bfloat16"
    assert isinstance(side.model, TorchSession)


def test_a_checkpoint_of_another_model_says_so(bench, random_model_dir, tmp_path):
    convert(random_model_dir(seed=3), PLAIN, tmp_path / "other")
    side, _ = bench.models.sides(str(tmp_path / "other"), None)
    assert side.name == "other: bfloat16, made of another model"


def test_a_checkpoint_of_another_size_is_refused(bench, random_model_dir, tmp_path):
    convert(random_model_dir(intermediate=96), PLAIN, tmp_path / "other")
    for call in (
        lambda: bench.models.sides(str(tmp_path / "other"), None),
        lambda: bench.models.speakers([tmp_path / "other"]),
    ):
        with pytest.raises(CheckpointError, match=r"has intermediate_size 96, the model .* 160; compare a checkpoint"):
            call()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no folder is named; type the folder"),
        ("nowhere", "folder .*nowhere does not exist"),
        ("empty", "empty has no config.json"),
        ("model", "model is neither an engine nor a checkpoint"),
    ],
)
def test_a_wrong_folder_is_named(bench, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    shutil.copytree(bench.model_dir, tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        bench.models.sides(HUGGING_FACE, str(tmp_path / name) if name else "")


def test_a_folder_that_was_deleted_meanwhile(bench, checkpoint):
    bench.models.sides(str(checkpoint), HUGGING_FACE)
    shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="does not exist; allowed: a folder written by"):
        bench.models.sides(str(checkpoint), HUGGING_FACE)


def test_an_engine_shows_the_taps_of_its_network(bench, checkpoint, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    engine = _engine(tmp_path / "engine", checkpoint)
    side, _ = bench.models.sides(engine, HUGGING_FACE)
    assert side.name == "engine engine (its network, interpreted on the CPU)"
    assert isinstance(side.model, InterpretedModel)
    taps = {}
    side.model.logits(torch.tensor([[5, 9, 11]]), taps.__setitem__)
    assert "layers.1.mlp.down" in taps


def test_an_engine_of_a_tensorrt_that_is_not_here_is_its_checkpoint(bench, checkpoint, tmp_path):
    side, _ = bench.models.sides(_engine(tmp_path / "engine", checkpoint, "tensorrt_of_old"), HUGGING_FACE)
    assert side.name == "engine engine (its checkpoint; its TensorRT is not installed)"
    assert isinstance(side.model, TorchSession)


def test_a_large_engine_is_its_checkpoint(bench, checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(models_module, "MOST_INTERPRETED_PARAMETERS", 10)
    side, _ = bench.models.sides(_engine(tmp_path / "engine", checkpoint), HUGGING_FACE)
    assert side.name == "engine engine (its checkpoint; its network is too large to interpret)"
    assert isinstance(side.model, TorchSession)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_speaks_by_its_checkpoint_where_no_gpu_is(bench, checkpoint, tmp_path):
    speaker = bench.models.speakers([_engine(tmp_path / "engine", checkpoint)])[0]
    assert speaker.name == "engine engine on cpu"
    assert "engine cannot run here" in speaker.reason
    assert speaker.session.limits.max_input_len == 8


@pytest.mark.parametrize("hindrance", ["another dtype", ""])
@pytest.mark.parametrize("runs", [True, False])
def test_an_engine_takes_the_memory_of_what_it_was_opened_on(bench, checkpoint, tmp_path, monkeypatch, hindrance, runs):
    def runnable(_):
        if not runs:
            raise BackendError("another TensorRT")

    session = open_session(checkpoint, "cpu").session
    session.backend = "tensorrt" if runs else "cpu" if hindrance else "triton"
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models_module, "require_runnable", runnable)
    monkeypatch.setattr(models_module, "gpu_hindrance", lambda _: hindrance)
    monkeypatch.setattr(models_module, "free_bytes", lambda device: asked.append(device) or 1e12)
    monkeypatch.setattr(models_module, "open_session", lambda _: OpenedSession(session, "as it is"))
    bench.models.speakers([_engine(tmp_path / "engine", checkpoint)])
    device = "cpu" if hindrance and not runs else "cuda"
    assert [opened.device for opened in bench.models._open.values()] == [device]
    assert asked[-1] == device  # room was made where it is needed


def test_an_engine_whose_checkpoint_is_gone(bench, checkpoint, tmp_path):
    engine = _engine(tmp_path / "engine", checkpoint)
    section = json.loads((engine / "config.json").read_text())
    shutil.rmtree(checkpoint)
    assert section["workbench"]["kind"] == "engine"
    for call in (lambda: bench.models.sides(engine, None), lambda: bench.models.speakers([engine])):
        with pytest.raises(CheckpointError, match="which is no longer there; put the checkpoint back"):
            call()


def test_one_model_cannot_speak_twice(bench):
    with pytest.raises(WorkbenchError, match="INT8 weights, bfloat16 is chosen twice; choose another model"):
        bench.models.speakers([None, INT8])
    with pytest.raises(LimitError, match="4 models; allowed: 1 to 3"):
        bench.models.speakers([HUGGING_FACE] * 4)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(), "float16"),
        (INT8, "INT8 weights, bfloat16"),
        (Recipe(weights=Int4WeightOnly(64)), "INT4 weights in groups of 64, float16"),
        (Recipe(weights=Int4WeightOnly(0)), "INT4 weights, float16"),
        (
            Recipe(weights=SmoothQuant(alpha=0.5, alpha_by_group={"layers.0.o": 0.2}), kv_cache=Int8KVCache()),
            "SmoothQuant alpha 0.5 and 1 groups of their own per token, INT8 KV cache per head, float16",
        ),
        (
            Recipe(
                weights=SmoothQuant(groups=(), activation="per_tensor"),
                kv_cache=Int8KVCache("per_tensor", 99.9),
                keep=("lm_head", "layers.*.mlp.down"),
            ),
            "SmoothQuant without smoothing per tensor, INT8 KV cache per tensor at 99.9 %, 2 patterns kept, float16",
        ),
    ],
)
def test_recipes_in_a_few_words(recipe, words):
    assert describe(recipe) == words


def test_a_model_that_does_not_fit_is_refused_with_sizes(bench, checkpoint, tmp_path, free):
    bench.models.sides(PLAIN, INT8)
    free(1000)
    with pytest.raises(LimitError, match=r"Hugging Face's model needs .* GB of memory on cpu; allowed: 1e-06 GB"):
        bench.models.sides(HUGGING_FACE, INT8)
    assert bench.models._open == {}
    engine = _engine(tmp_path / "engine", checkpoint)
    for call in (
        lambda: bench.models.sides(str(checkpoint), HUGGING_FACE),
        lambda: bench.models.speakers([str(checkpoint)]),
        lambda: bench.models.sides(engine, HUGGING_FACE),
        lambda: bench.models.speakers([engine]),
    ):
        with pytest.raises(LimitError, match=r"the checkpoint plain needs .* GB of memory on (cpu|cuda); allowed"):
            call()


def test_room_is_made_before_a_checkpoint_is_opened(bench, monkeypatch):
    """So that the two are never there together."""
    bench.models.sides(HUGGING_FACE, INT8)
    opened = bench.models._open
    monkeypatch.setattr(models_module, "free_bytes", lambda _device: 0 if (HUGGING_FACE,) in opened else 1e12)
    bench.models.speakers([PLAIN])
    assert [key[0] for key in opened] == [str(bench.checkpoint(INT8)), str(bench.checkpoint(PLAIN))]


def test_room_is_made_on_the_device_that_needs_it(bench, free):
    bench.models.sides(HUGGING_FACE, INT8)
    free(0)
    assert not bench.models.make_room(1, "cuda")
    assert len(bench.models._open) == 2
    assert not bench.models.make_room(1, "cpu")
    assert bench.models._open == {}


def test_a_closed_model_gives_its_memory_back(bench, monkeypatch):
    given = []
    monkeypatch.setattr(models_module, "give_back", lambda: given.append(len(bench.models._open)))
    side, _ = bench.models.sides(HUGGING_FACE, INT8)
    model = weakref.ref(side.model.reference.model)
    bench.models.close()
    assert given == [1, 0]
    gc.collect()
    assert model() is None
    with pytest.raises(RuntimeError, match="Hugging Face's model is closed"):
        side.model.logits(torch.tensor([[5]]))


def test_a_closed_network_gives_its_memory_back(bench, checkpoint, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    side, _ = bench.models.sides(_engine(tmp_path / "engine", checkpoint), INT8)
    side.model.logits(torch.tensor([[5, 9]]))
    interpreter = weakref.ref(side.model._built[3])
    bench.models.close()
    assert interpreter() is None
