"""An engine's network with taps: the same tensors as the torch op set, at every position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tolerances import NETWORK_CHECK_RATIO, TOLERANCE, relative_l2
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.interpreted_model import InterpretedModel
from workbench.engine.product import product_named
from workbench.errors import LimitError
from workbench.model.taps import tap_names
from workbench.quantization.convert import convert
from workbench.recipe import BuildLimits, Int8WeightOnly, Recipe
from workbench.runtime.session import SessionOptions, TorchSession

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

LIMITS = BuildLimits(max_batch_size=2, max_input_len=16, max_output_len=4)


@pytest.fixture(scope="module")
def checkpoint(random_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("interpreted") / "checkpoint"
    convert(random_model_dir(kv_heads=2), Recipe(dtype="bfloat16", weights=Int8WeightOnly(), build=LIMITS), out)
    return load_checkpoint(out)


@pytest.fixture(scope="module")
def model(checkpoint):
    return InterpretedModel(product_named("tensorrt_rtx"), checkpoint)


@pytest.mark.parametrize("length", [9, 5])
def test_every_tap_is_the_torch_op_set_s(model, checkpoint, length):
    ids = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(0))
    ours, theirs = {}, {}
    logits = model.logits(ids, ours.__setitem__)
    plain = TorchSession(checkpoint.config, checkpoint.weights, SessionOptions(torch.bfloat16, "torch"))
    wide = TorchSession(checkpoint.config, checkpoint.weights, SessionOptions(torch.float64, "torch"))
    expected = wide.logits(ids)
    plain.logits(ids, theirs.__setitem__)
    assert list(ours) == tap_names(checkpoint.config.num_layers)
    assert {name: tap.shape for name, tap in ours.items()} == {name: tap.shape for name, tap in theirs.items()}
    assert torch.equal(logits, ours["logits"])
    own = relative_l2(theirs["logits"], expected)
    assert relative_l2(logits, expected) <= max(NETWORK_CHECK_RATIO * own, TOLERANCE[torch.bfloat16]["op"])


@pytest.mark.parametrize("shape", [(1, 17), (3, 4)])
def test_the_engine_s_limits_hold(model, shape):
    with pytest.raises(LimitError, match=r"allowed: 2 rows of 16 tokens, the engine's limits; choose shorter windows"):
        model.logits(torch.ones(shape, dtype=torch.int64))


def test_a_text_may_fill_every_position(checkpoint):
    config = replace(checkpoint.config, max_position_embeddings=16)
    logits = InterpretedModel(product_named("tensorrt_rtx"), replace(checkpoint, config=config)).logits(
        torch.full((1, 16), 5)
    )
    assert logits.shape == (1, 16, config.vocab_size)


def test_a_closed_one_says_so(checkpoint):
    model = InterpretedModel(product_named("tensorrt_rtx"), checkpoint)
    model.close()
    with pytest.raises(RuntimeError, match="this engine's network is closed; open another"):
        model.logits(torch.ones((1, 2), dtype=torch.int64))
