from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from figure_texts import faults

from tests.tolerances import HF_TAPS
from workbench.errors import Cancelled, LimitError, WorkbenchError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.layer_diff import METRICS, DiffOptions, LayerDiff
from workbench.model.taps import LAYER_SITES, tap_names
from workbench.model.weights import DenseWeight
from workbench.runtime.session import SessionOptions, TorchSession


def _ours(model, dtype=torch.float32):
    return TorchSession(model.config, model.weights, SessionOptions(dtype, "torch"))


def _theirs(model, dtype=torch.float32):
    return HFReference.from_weights(model.config, model.weights, dtype)


def _spoiled(model, layer, name):
    """The model with one linear layer's first row doubled."""
    old = model.weights.layers[layer]
    linear = getattr(old, name)
    weight = linear.weight.clone()
    weight[0] *= 2
    layers = list(model.weights.layers)
    layers[layer] = replace(old, **{name: DenseWeight(weight, linear.bias)})
    return replace(model, weights=replace(model.weights, layers=layers))


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(kv_heads=2)


@pytest.fixture(scope="module")
def good(model):
    return LayerDiff.compare(_theirs(model), _ours(model), model.ids)


def test_the_same_model_passes(good, model):
    assert good
    assert good.first_divergence is None
    assert good.precision == "float32"
    assert (good.windows, good.tokens) == (len(model.ids), model.ids.numel())
    assert list(good.frame["tap"]) == tap_names(model.config.num_layers)
    assert good.frame["relative_l2"].max() < HF_TAPS[torch.float32]
    assert good.summary.positions == model.ids.numel()
    assert "same model" in repr(good)


@pytest.mark.parametrize(
    ("linear", "tap"),
    [("qkv", "attention.qkv"), ("o", "attention.o"), ("gate_up", "mlp.gate_up"), ("down", "mlp.down")],
)
def test_a_bug_is_found_where_it_is(model, linear, tap):
    diff = LayerDiff.compare(_theirs(model), _ours(_spoiled(model, 1, linear)), model.ids)
    assert diff.first_divergence == f"layers.1.{tap}"
    before = diff.frame.iloc[: list(diff.frame["tap"]).index(diff.first_divergence)]
    assert before["relative_l2"].max() < HF_TAPS[torch.float32]


def test_another_model_fails(model):
    spoiled = _spoiled(_spoiled(model, 0, "o"), 0, "gate_up")
    diff = LayerDiff.compare(_theirs(model), _ours(spoiled), model.ids)
    assert not diff
    assert "not the same model" in repr(diff)


def test_precision_is_that_of_the_activations(model):
    half = LayerDiff.compare(_theirs(model), _ours(model, torch.bfloat16), model.ids)
    assert half.precision == "bfloat16"
    assert 1e-4 < half.frame["relative_l2"].iloc[-1] < 0.1
    named = LayerDiff.compare(_theirs(model), _ours(model, torch.bfloat16), model.ids, DiffOptions("int8"))
    assert named.precision == "int8"


def test_frame_has_layers_and_sites(good, model):
    layers = good.frame.dropna(subset="layer")
    assert set(layers["site"]) == set(LAYER_SITES)
    assert set(layers["layer"]) == set(range(model.config.num_layers))
    assert set(METRICS) <= set(good.frame.columns)


@pytest.mark.parametrize("metric", METRICS)
def test_grid_is_sites_by_layers(good, model, metric):
    grid = good.grid(metric)
    assert list(grid.index) == list(LAYER_SITES)
    assert list(grid.columns) == list(range(model.config.num_layers))
    row = good.frame.set_index("tap").loc["layers.1.mlp.down"]
    assert grid.loc["mlp.down", 1] == row[metric]


def test_samples_belong_to_the_tap(model, good):
    reference, candidate = good.samples("logits")
    logits = torch.cat([_theirs(model).logits(ids[None]) for ids in model.ids])
    assert torch.isin(reference, logits).all()
    assert torch.allclose(reference, candidate, atol=1e-4)


def test_samples_of_an_unknown_tap(good):
    with pytest.raises(WorkbenchError, match=r"tap 'layers\.9\.mlp\.down' was not compared"):
        good.samples("layers.9.mlp.down")


def test_models_of_different_size(model, small_model):
    with pytest.raises(WorkbenchError, match=r"tap layers.0.attention.qkv has the shape \[1, 9, 64\], but"):
        LayerDiff.compare(_theirs(small_model(kv_heads=4)), _ours(model), model.ids)


@pytest.mark.parametrize("shape", [(9,), (0, 9), (2, 1)])
def test_ids_must_be_windows(model, shape):
    with pytest.raises(LimitError, match="allowed: one window or more of two tokens or more"):
        LayerDiff.compare(_theirs(model), _ours(model), torch.ones(shape, dtype=torch.int64))


def test_unknown_precision(model):
    with pytest.raises(LimitError, match="precision 'int3'; allowed: float64, float32"):
        LayerDiff.compare(_theirs(model), _ours(model), model.ids, DiffOptions("int3"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (None, "every difference is rounding"),
        ("weights", "the code is right; with the original weights they differ from layers.1.mlp.down on"),
        ("code", "first at layers.1.mlp.down: the code differs there"),
    ],
)
def test_float64_reruns_tell_the_cause(model, other, words):
    spoiled = _spoiled(model, 1, "down")
    wide = torch.float64
    ours = model if other is None else spoiled
    diff = LayerDiff.compare(_theirs(model), _ours(ours), model.ids)
    same = LayerDiff.compare(_theirs(model if other == "code" else ours, wide), _ours(ours, wide), model.ids)
    original = LayerDiff.compare(_theirs(model, wide), _ours(ours, wide), model.ids)
    judged = diff.with_float64(original, same)
    assert words in judged.verdict
    assert judged.frame["float64"].iloc[-1] == original.frame["relative_l2"].iloc[-1]
    assert judged.frame["float64_same_weights"].iloc[-1] == same.frame["relative_l2"].iloc[-1]
    assert diff.verdict == ""


def test_without_the_same_weights_float64_blames_no_code(model):
    spoiled = _spoiled(model, 1, "down")
    wide = torch.float64
    diff = LayerDiff.compare(_theirs(model), _ours(spoiled), model.ids)
    original = LayerDiff.compare(_theirs(model, wide), _ours(spoiled, wide), model.ids)
    assert "differ from layers.1.mlp.down on, so rounding is not the cause" in diff.with_float64(original).verdict
    exact = LayerDiff.compare(_theirs(model, wide), _ours(model, wide), model.ids)
    assert "every difference is rounding" in diff.with_float64(exact).verdict


def test_errors_per_token_add_up_to_the_tap_s(good, model):
    errors = good.per_token
    assert torch.equal(errors.ids, model.ids)
    assert errors.of("logits").shape == model.ids.shape
    reference = torch.cat([_theirs(model).logits(ids[None]) for ids in model.ids])
    energy = reference.double().square().sum(-1)
    whole = ((errors.of("logits").double().square() * energy).sum() / energy.sum()).sqrt()
    tap = good.frame.set_index("tap").loc["logits", "relative_l2"]
    assert float(whole) == pytest.approx(tap, rel=1e-3)
    assert errors.window_texts(0)[0] == f"<{int(model.ids[0, 0])}>"


def test_tokens_have_texts_where_a_tokenizer_is_known(model):
    class Tokenizer:
        def convert_ids_to_tokens(self, token):
            return f"t{token}"

        def decode(self, ids):
            return f"t{ids[0]} "

    diff = LayerDiff.compare(_ours(model), _ours(model), model.ids, DiffOptions(tokenizer=Tokenizer()))
    assert diff.per_token.window_texts(1) == tuple(f"t{token} " for token in model.ids[1].tolist())


def test_the_histogram_of_errors_counts_every_finite_sample(good):
    edges, counts = good.error_histogram("layers.0.mlp.down", 20)
    reference, candidate = good.samples("layers.0.mlp.down")
    assert (len(edges), counts.sum()) == (21, len(reference))
    error = (candidate.double() - reference.double()).numpy()
    assert (edges[0], edges[-1]) == (error.min(), error.max())
    lost = replace(good, _samples={"embedding": (torch.ones(3), torch.full((3,), torch.nan))})
    assert [len(part) for part in lost.error_histogram("embedding")] == [0, 0]


def test_a_stop_does_not_wait_for_a_window_s_end(model):
    def stop(event):
        if event.depth == 1 and event.done == 3:
            raise Cancelled

    session = _ours(model)
    with pytest.raises(Cancelled):
        LayerDiff.compare(_theirs(model), session, model.ids, report=stop)
    assert LayerDiff.compare(_theirs(model), session, model.ids)


def test_save(good, tmp_path):
    for name in ("diff.csv", "diff.parquet", "diff.png"):
        good.save(tmp_path / name)
    table = pd.read_csv(tmp_path / "diff.csv")
    assert list(table["tap"]) == list(good.frame["tap"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "diff.parquet"), good.frame)
    assert (tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")


def test_save_refuses_other_endings(good, tmp_path):
    with pytest.raises(WorkbenchError, match=r"has the ending '.xls'; allowed: .csv, .parquet, .png"):
        good.save(tmp_path / "diff.xls")
    with pytest.raises(WorkbenchError, match="does not exist; create it"):
        good.save(tmp_path / "nowhere" / "diff.csv")


def test_plot_shows_what_it_compares(good):
    figure = good.plot()
    assert figure.axes[0].get_title(loc="left") == "ours (float32) against Hugging Face"
    assert "First divergence: none" in figure.axes[0].texts[0].get_text()
    assert figure.axes[0].get_ylabel() == "relative L2 error"
    sites = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert set(LAYER_SITES) <= set(sites)
    assert faults(figure) == []


def test_plot_of_an_exact_match(model):
    diff = LayerDiff.compare(_ours(model), _ours(model), model.ids)
    assert diff.frame["relative_l2"].max() == 0
    diff.plot().canvas.draw()


def test_progress_counts_windows(model):
    events = []
    LayerDiff.compare(_ours(model), _ours(model), model.ids, report=events.append)
    assert [(event.done, event.total) for event in events if event.depth == 0] == [(1, 2), (2, 2)]
