"""Comparing and talking on a CUDA device: the same figures as on the CPU. Needs torch, transformers and pandas."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.random_model import SMALL, random_weights
from tests.tolerances import HF_TAPS, TOLERANCE, relative_l2
from workbench.bench import models as models_module
from workbench.bench.models import HUGGING_FACE, OpenModels, free_bytes
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.evaluation.compare import compare_sides
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.hf_session import HFSession
from workbench.evaluation.layer_diff import LayerDiff
from workbench.evaluation.side_by_side import Speaker, converse, read_along
from workbench.quantization.convert import convert
from workbench.recipe import Int8WeightOnly, Recipe
from workbench.runtime.session import SessionOptions, TorchSession

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(2))


def _models(dtype, device):
    weights = random_weights(SMALL, dtype)
    reference = HFReference.from_weights(SMALL, weights, dtype, device)
    return reference, TorchSession(SMALL, weights, SessionOptions(dtype, "torch", device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_models_agree_there_and_with_the_cpu(dtype):
    found = {device: LayerDiff.compare(*_models(dtype, device), IDS) for device in ("cpu", "cuda")}
    for diff in found.values():
        assert diff.frame["relative_l2"].max() < HF_TAPS[dtype]
    here, there = (diff.per_token for diff in found.values())
    assert here.of("logits").shape == there.of("logits").shape
    for reference, other in zip(found["cpu"].samples("logits"), found["cuda"].samples("logits"), strict=True):
        assert relative_l2(other, reference) < TOLERANCE[torch.float32]["model"]


def test_generation_is_that_of_the_cpu():
    (here, ours), (there, theirs) = _models(torch.float32, "cpu"), _models(torch.float32, "cuda")
    expected = here.generate([[5, 9, 11]], 8)
    assert there.generate([[5, 9, 11]], 8) == expected
    speakers = [Speaker("HF", HFSession(there)), Speaker("ours", theirs), Speaker("CPU", ours)]
    talk = converse(speakers, [5, 9, 11], 8)
    assert len({tuple(answer.ids) for answer in talk.answers}) == 1
    reading = read_along(speakers, [5, 9, 11], talk.answers[0].ids)
    assert all(reading.differing(number) == [] for number in range(3))


def test_a_bench_on_the_gpu_opens_both_there(random_model_dir, tmp_path, monkeypatch):
    source = HFCheckpoint.open(random_model_dir(dtype="float16"))
    recipe = Recipe(dtype="float16", weights=Int8WeightOnly())
    convert(source.folder, recipe, tmp_path / "checkpoint")
    bench = SimpleNamespace(
        source=source, config=source.config, device="cuda", recipe=recipe, checkpoint=lambda *_: tmp_path / "checkpoint"
    )
    models = OpenModels(bench)
    reference, candidate = models.sides(HUGGING_FACE, None)
    assert reference.name == "Hugging Face float32"
    assert reference.model.reference.device.type == candidate.model.device.type == "cuda"
    diff = compare_sides(reference, candidate, IDS)
    assert diff.first_divergence is None
    assert free_bytes("cuda") < torch.cuda.get_device_properties(0).total_memory
    models.close()
    monkeypatch.setattr(models_module, "free_bytes", lambda _device: 0)
    assert models.sides(HUGGING_FACE, None)[0].name == "Hugging Face float16"
