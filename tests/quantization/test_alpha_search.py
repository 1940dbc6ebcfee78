"""The error that a slider shows is that of a layer that was really smoothed, converted, written, read and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.quantization.calibrated_models import MODELS, Calibrated, calibrated
from tests.tolerances import relative_l2
from workbench.backends.torch_ops import TorchOps
from workbench.errors import BackendError, Cancelled, CheckpointError, RecipeError
from workbench.model.weights import DenseWeight, LinearWeight
from workbench.progress import ProgressEvent
from workbench.quantization.alpha_search import (
    DEFAULT_ALPHAS,
    AlphaCurve,
    AlphaSearch,
    AlphaSearchOptions,
    tuned,
)
from workbench.quantization.convert import convert
from workbench.quantization.row_sample import RowSample
from workbench.quantization.smoothquant import SmoothedLayer, column_absmax, smooth_layer
from workbench.recipe import INPUT_SCALES, SMOOTHING_GROUPS, WEIGHT_SCALES, Recipe, SmoothQuant

ALPHAS = {"layers.1.o": 0.3, "layers.1.qkv": 0.6, "layers.1.down": 0.95}
Make = Callable[..., Calibrated]


@pytest.fixture(scope="module")
def make(random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(kv_heads=2)``: such a random model, calibrated; one per choice."""
    made: dict[Path, Calibrated] = {}

    def one(**choices: object) -> Calibrated:
        folder = random_model_dir(**choices)
        if folder not in made:
            made[folder] = calibrated(folder, tmp_path_factory.mktemp("calibrated") / "ranges")
        return made[folder]

    return one


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make: Make) -> Calibrated:
    return make(**MODELS[request.param])


@pytest.fixture
def gqa(make: Make) -> Calibrated:
    return make(**MODELS["gqa"])


def search(model: Calibrated, **options: object) -> AlphaSearch:
    return AlphaSearch(model.source, model.ranges, model.rows, AlphaSearchOptions(**options))  # type: ignore[arg-type]


def expected_error(model: Calibrated, stored: LinearWeight, smoothed: SmoothedLayer, group: str) -> float:
    """Layer 1's group by a stored weight: its input divided, and what other groups divide multiplied, by hand."""
    config, linear = model.source.config, f"layers.1.{SMOOTHING_GROUPS[group]}"
    x, ops = model.rows(linear), TorchOps(torch.float32)
    exact = ops.linear(x, getattr(model.source.layers(torch.float32)[1], group), linear)
    if group in smoothed.scales:
        scale = smoothed.scales[group]
        if group == "o":
            shared = config.num_heads // config.num_kv_heads
            scale = scale.view(config.num_kv_heads, -1).repeat_interleave(shared, 0).flatten()
        x = x / scale
    found = ops.linear(x, stored, linear)
    reader = {"qkv": "o", "gate_up": "down"}.get(group)
    if reader in smoothed.scales:
        scale = smoothed.scales[reader]
        found = torch.cat([found[:, : -len(scale)], found[:, -len(scale) :] * scale], 1)
    return relative_l2(found, exact)


@pytest.mark.parametrize("weight", WEIGHT_SCALES)
@pytest.mark.parametrize("activation", INPUT_SCALES)
@pytest.mark.parametrize("groups", [tuple(SMOOTHING_GROUPS), ("o", "gate_up"), ("down",), ()], ids="-".join)
def test_the_error_is_that_of_a_converted_checkpoint(
    model: Calibrated, weight: str, activation: str, groups: tuple[str, ...], tmp_path: Path
) -> None:
    alphas = {name: alpha for name, alpha in ALPHAS.items() if name.rsplit(".", 1)[1] in groups}
    how = SmoothQuant(weight, activation, groups=groups, alpha_by_group=alphas)
    recipe = Recipe(dtype="float32", weights=how)
    checkpoint = convert(model.source.folder, recipe, tmp_path / "checkpoint", ranges=model.ranges)
    stored = checkpoint.weights.layers[1]
    dense = model.source.layers(torch.float32)[1]
    smoothed = smooth_layer(dense, 1, model.source.config, model.ranges, how)
    trials = search(model)
    for group, site in SMOOTHING_GROUPS.items():
        found = trials.error(1, group, how)
        assert found.error == pytest.approx(expected_error(model, getattr(stored, group), smoothed, group), rel=1e-4)
        assert 1e-3 < found.error < 0.5
        assert (found.layer, found.group, found.alpha) == (1, group, how.alpha_of(1, group))
        torch.testing.assert_close(found.input_absmax, smoothed.inputs[f"layers.1.{site}"])
        torch.testing.assert_close(found.weight_absmax, column_absmax(getattr(smoothed.weights, group).weight))


def test_static_scales_clip_what_calibration_did_not_see(gqa: Calibrated) -> None:
    """A row ten times larger costs a static scale dear, and a token's own scale nothing."""
    loud = gqa.rows("layers.0.mlp.down").clone()
    loud[0] *= 10
    held = _Rows(gqa, {"layers.0.mlp.down": loud})
    for activation, worse in (("per_tensor", True), ("per_token", False)):
        how = SmoothQuant(activation=activation)
        calm, found = (AlphaSearch(gqa.source, gqa.ranges, rows).error(0, "down", how) for rows in (gqa.rows, held))
        assert (found.error > 3 * calm.error) == worse


class _Rows(RowSample):
    """Rows of which some are others."""

    def __init__(self, model: Calibrated, others: dict[str, torch.Tensor]) -> None:
        super().__init__(model.rows.file)
        self.others = others

    def __call__(self, linear: str) -> torch.Tensor:
        return self.others.get(linear, super().__call__(linear))


def test_a_model_in_half_precision_is_held_so_and_costs_the_same(make: Make) -> None:
    model = make(dtype="bfloat16")
    how = SmoothQuant(activation="per_tensor")
    half = search(model)
    wide = search(model)
    wide.dtype = torch.float32
    assert half.dtype == torch.bfloat16
    for group in SMOOTHING_GROUPS:
        assert half.error(0, group, how).error == wide.error(0, group, how).error


# ---- curves


def test_a_curve_is_the_error_at_each_alpha(gqa: Calibrated) -> None:
    how, trials = SmoothQuant(activation="per_tensor"), search(gqa)
    for group in SMOOTHING_GROUPS:
        curve = trials.curve(0, group, how, (0.8, 0.2, 0.5, 0.2))
        assert curve.alphas == (0.2, 0.5, 0.8)
        for alpha, error in zip(curve.alphas, curve.errors, strict=True):
            at = replace(how, alpha_by_group={f"layers.0.{group}": alpha})
            assert trials.error(0, group, at).error == error
    assert len(set(curve.errors)) == 3


def test_the_usual_alphas_are_all_of_0_to_1(gqa: Calibrated) -> None:
    events: list[ProgressEvent] = []
    curve = search(gqa).curve(0, "qkv", SmoothQuant(groups=()), report=events.append)
    assert curve.alphas == DEFAULT_ALPHAS == tuple(round(0.05 * step, 2) for step in range(21))
    assert [(event.done, event.total) for event in events] == [(done, 21) for done in range(22)]


def test_the_best_of_a_curve() -> None:
    curve = AlphaCurve(3, "down", (0.1, 0.5, 0.9), (0.3, 0.2, 0.25))
    assert curve.best == (0.5, 0.2)
    assert curve.name == "layers.3.down"


@pytest.mark.parametrize(("group", "reader"), [("qkv", "o"), ("gate_up", "down")])
def test_a_group_depends_on_the_one_that_reads_it(gqa: Calibrated, group: str, reader: str) -> None:
    trials = search(gqa)
    low, high = (SmoothQuant("per_tensor", alpha_by_group={f"layers.0.{reader}": alpha}) for alpha in (0.1, 0.9))
    assert trials.error(0, group, low).error != trials.error(0, group, high).error
    assert trials.error(0, reader, low).error != trials.error(0, reader, high).error
    other = SmoothQuant("per_tensor", alpha_by_group={f"layers.1.{reader}": 0.1})
    assert trials.error(0, group, other).error == trials.error(0, group, SmoothQuant("per_tensor")).error


def test_scales_are_those_of_smoothing(model: Calibrated) -> None:
    how, trials = SmoothQuant(groups=("qkv", "o", "down"), alpha_by_group=ALPHAS), search(model)
    smoothed = smooth_layer(model.source.layers(torch.float32)[1], 1, model.source.config, model.ranges, how)
    for group in how.groups:
        assert torch.equal(trials.scale(1, group, how), smoothed.scales[group])
    assert trials.scale(1, "gate_up", how) is None


# ---- tuning


def test_tuning_finds_what_the_tuned_recipe_then_costs(gqa: Calibrated) -> None:
    how, trials, events = SmoothQuant("per_tensor", "per_tensor"), search(gqa), []
    curves = list(trials.tune(how, report=events.append))
    result = tuned(how, curves)
    assert [(curve.layer, curve.group) for curve in curves] == [
        (layer, group) for layer in range(2) for group in ("o", "down", "qkv", "gate_up")
    ]
    for curve in curves:
        alpha, error = curve.best
        assert result.alpha_by_group[curve.name] == alpha
        # qkv and gate_up were tuned with what was found for o and down.
        assert trials.error(curve.layer, curve.group, result).error == error
        assert error <= trials.error(curve.layer, curve.group, replace(result, alpha_by_group={
            **result.alpha_by_group, curve.name: how.alpha})).error * 1.05  # fmt: skip
        assert set(curve.alphas) >= {step / 10 for step in range(11)}
        assert {round(alpha - 0.05, 4), round(alpha + 0.05, 4)} & set(curve.alphas)
    assert [(event.done, event.total, event.unit) for event in events] == [(n, 8, "groups") for n in range(9)]


def test_what_is_locked_or_not_asked_for_stays(gqa: Calibrated) -> None:
    how = SmoothQuant(groups=("o", "qkv"), alpha_by_group={"layers.0.o": 0.4})
    trials = search(gqa)
    curves = list(trials.tune(how, [(0, "qkv"), (0, "o"), (0, "qkv")], locked={(0, "o"), (1, "o")}))
    assert [curve.name for curve in curves] == ["layers.0.qkv"]
    result = tuned(how, curves)
    assert result.alpha_by_group == {"layers.0.o": 0.4, "layers.0.qkv": curves[0].best[0]}
    assert trials.error(0, "qkv", result).error == curves[0].best[1]


def test_a_tuning_can_be_stopped(gqa: Calibrated) -> None:
    def report(event: ProgressEvent) -> None:
        if event.done == 2:
            raise Cancelled

    found: list[AlphaCurve] = []

    def collect(curves: Iterator[AlphaCurve]) -> None:
        for curve in curves:
            found.append(curve)

    with pytest.raises(Cancelled):
        collect(search(gqa).tune(SmoothQuant(), report=report))
    assert [curve.name for curve in found] == ["layers.0.o", "layers.0.down"]


def test_memory_is_bounded(gqa: Calibrated) -> None:
    how, small, large = SmoothQuant(), search(gqa, cache_bytes=1), search(gqa)
    order = [(0, "o"), (1, "o"), (0, "qkv")]
    assert [small.error(*place, how).error for place in order] == [large.error(*place, how).error for place in order]
    assert small.held_layers == (0,)
    assert large.held_layers == (1, 0)


def test_fewer_rows(gqa: Calibrated) -> None:
    how = SmoothQuant()
    whole, few = (search(gqa, rows=rows).error(0, "o", how).error for rows in (1000, 5))
    assert whole == search(gqa, rows=20).error(0, "o", how).error != few


# ---- what is refused


def test_no_such_group(gqa: Calibrated) -> None:
    with pytest.raises(RecipeError, match=r"no smoothing group 'gateup'; allowed: qkv, .*; did you mean 'gate_up'"):
        search(gqa).error(0, "gateup", SmoothQuant())


@pytest.mark.parametrize("layer", [-1, 2])
def test_no_such_layer(gqa: Calibrated, layer: int) -> None:
    with pytest.raises(RecipeError, match=rf"the model has no layer {layer}; allowed: 0 to 1"):
        search(gqa).curve(layer, "o", SmoothQuant())


@pytest.mark.parametrize("alphas", [(), (0.5, 1.2)])
def test_no_such_alpha(gqa: Calibrated, alphas: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match=r"alphas are .*; allowed: one or more numbers from 0 to 1"):
        search(gqa).curve(0, "o", SmoothQuant(), alphas)


def test_a_group_that_is_not_smoothed_is_not_tuned(gqa: Calibrated) -> None:
    with pytest.raises(RecipeError, match=r"layers\.1\.down cannot be tuned: .*; allowed: qkv; add down to weights"):
        search(gqa).tune(SmoothQuant(groups=("qkv",)), [(1, "down")])
    with pytest.raises(RecipeError, match=r"allowed: none, as weights\.groups is empty"):
        search(gqa).tune(SmoothQuant(groups=()), [(1, "down")])


@pytest.mark.parametrize("name", ["rows", "cache_bytes"])
def test_options_that_hold_nothing(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"alpha search {name} is 0; allowed: whole numbers from 1"):
        AlphaSearchOptions(**{name: 0})


def test_data_of_another_model(gqa: Calibrated, make: Make) -> None:
    other = make()
    with pytest.raises(CheckpointError, match=r"the ranges are of model \w{12}; allowed: ranges of model"):
        AlphaSearch(gqa.source, other.ranges, gqa.rows)
    with pytest.raises(CheckpointError, match=r"holds rows of model \w{12}; allowed: rows of model \w{12}; calibrate"):
        AlphaSearch(gqa.source, gqa.ranges, other.rows)


def test_rows_of_another_width(gqa: Calibrated) -> None:
    rows = _Rows(gqa, {"layers.0.attention.o": torch.zeros(4, 3)})
    with pytest.raises(CheckpointError, match=r"rows of layers\.0\.attention\.o have 3 channels; allowed: 64"):
        AlphaSearch(gqa.source, gqa.ranges, rows).error(0, "o", SmoothQuant())


def test_weights_that_are_no_numbers(gqa: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = gqa.source.layers(torch.float32)
    broken = replace(layers[0], down=DenseWeight(torch.full_like(layers[0].down.weight, torch.nan)))
    trials = search(gqa)
    monkeypatch.setattr(type(gqa.source), "layers", lambda *_: [broken])
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.down holds \d+ values that are NaN or infinite"):
        trials.error(0, "o", SmoothQuant())


def test_no_such_device(gqa: Calibrated) -> None:
    with pytest.raises(BackendError, match="device 'tpu'; allowed: cpu, cuda, cuda:N"):
        search(gqa, device="tpu")
