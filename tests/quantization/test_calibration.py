"""Calibration against a plain statement of it: the whole model at once with the plain op set, maxima of its taps."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tolerances import TOLERANCE

from tests.quantization.measure_calibration_memory import FOUR_GB, measure_in_fresh_process
from workbench.backends.torch_ops import TorchOps
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import BackendError, Cancelled, CheckpointError, LimitError, RecipeError
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, Step
from workbench.model.rotary import rotary_tables
from workbench.progress import ProgressEvent
from workbench.quantization import layer_walk
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate, load_rows
from workbench.quantization.ranges import ActivationRanges, count_bins, magnitude_codes
from workbench.quantization.row_sample import spread

OPTIONS = CalibrationOptions(dtype="float32", batch=2, chunk=4, rows=12)
LENGTH = 10
# Which tap is the input, and which the output, of a linear layer; said once more, not taken from the code.
PLACES = {
    "attention.qkv": ("attention_norm", "attention.qkv"),
    "attention.o": ("attention.context", "attention.o"),
    "mlp.gate_up": ("mlp_norm", "mlp.gate_up"),
    "mlp.down": ("mlp.act", "mlp.down"),
}
MODELS = [
    pytest.param({}, id="biases"),
    pytest.param({"kv_heads": 2}, id="grouped-query"),
    pytest.param({"kv_heads": 1, "bias": False}, id="one kv head, no bias"),
]


def make_data(seed: int = 0, count: int = 7, *, tune: int = 3) -> CalibrationWindows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (count + tune, LENGTH), generator=generator)
    return CalibrationWindows(ids[:count], f"random {seed}", "0" * 64, tune=ids[count:] if tune else None)


def all_taps(model_dir: Path, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every tap of one pass of the plain op set over all windows together."""
    source = HFCheckpoint.open(model_dir)
    config, taps = source.config, {}
    shape = (len(ids), config.num_kv_heads, ids.shape[1], config.head_dim)
    caches = [
        LayerCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(config.num_layers)
    ]
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    step = Step(ids, positions, torch.zeros(len(ids), dtype=torch.int32))
    model = InternLM(config, source.weights(dtype), rotary_tables(config, 64))
    model.forward(TorchOps(dtype, on_tap=taps.__setitem__), step, caches)
    return taps


def expected_maxima(taps: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """By the names of the file of ranges."""
    maxima = {}
    for layer in range(layers):
        for site, (read, written) in PLACES.items():
            maxima[f"inputs/layers.{layer}.{site}"] = taps[f"layers.{layer}.{read}"].abs().amax((0, 1))
            maxima[f"outputs/layers.{layer}.{site}"] = taps[f"layers.{layer}.{written}"].abs().amax((0, 1))
        maxima[f"keys/{layer}"] = taps[f"layers.{layer}.attention.key"].abs().amax((0, 2, 3))
        maxima[f"values/{layer}"] = taps[f"layers.{layer}.attention.value"].abs().amax((0, 2, 3))
    maxima["inputs/lm_head"] = taps["final_norm"].abs().amax((0, 1))
    maxima["outputs/lm_head"] = taps["logits"].abs().amax((0, 1))
    return maxima


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(events: int) -> Callable[[ProgressEvent], None]:
    """A reporter that stops the job when it hears of that many steps."""
    heard = []

    def report(event: ProgressEvent) -> None:
        heard.append(event)
        if len(heard) == events:
            raise Cancelled

    return report


@pytest.mark.parametrize("choices", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_maxima_are_those_of_the_whole_model_at_once(
    random_model_dir: Callable[..., Path], tmp_path: Path, choices: dict[str, Any], dtype: str
) -> None:
    model_dir, data = random_model_dir(**choices), make_data()
    ranges = calibrate(model_dir, data, tmp_path / "out", dataclasses.replace(OPTIONS, dtype=dtype))
    expected = expected_maxima(all_taps(model_dir, data.ranges, getattr(torch, dtype)), layers=2)
    found = {name: tensor for name, tensor in ranges.tensors().items() if "histograms" not in name}
    assert found.keys() == expected.keys()
    allowed = 4 * TOLERANCE[getattr(torch, dtype)]["model"]
    for name, maxima in expected.items():
        torch.testing.assert_close(found[name], maxima.float(), rtol=allowed, atol=allowed * float(maxima.max()))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_histograms_count_every_value_once(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir, data = random_model_dir(kv_heads=2), make_data()
    ranges = calibrate(model_dir, data, tmp_path / "out", OPTIONS)
    taps = all_taps(model_dir, data.ranges)

    def differing(counts: torch.Tensor, values: torch.Tensor) -> float:
        """Share of values in another bin: those near an edge, moved by rounding."""
        plain = count_bins(magnitude_codes(values.contiguous()), torch.float32)
        assert counts.sum() == plain.sum() == values.numel()
        return float((counts - plain).abs().sum()) / 2 / values.numel()

    for tap, name in (("final_norm", "lm_head.input"), ("logits", "lm_head.output")):
        assert differing(ranges.histograms[name], taps[tap]) < 1e-3
    for layer in range(2):
        for site, (read, written) in PLACES.items():
            assert differing(ranges.histograms[f"layers.{layer}.{site}.input"], taps[f"layers.{layer}.{read}"]) < 1e-3
            assert (
                differing(ranges.histograms[f"layers.{layer}.{site}.output"], taps[f"layers.{layer}.{written}"]) < 1e-3
            )
        for part in ("key", "value"):
            heads = taps[f"layers.{layer}.attention.{part}"].transpose(0, 1)
            assert heads.shape[0] == 2
            for head, counts in enumerate(ranges.kv_histograms[f"layers.{layer}.{part}"]):
                assert differing(counts, heads[head]) < 2e-3


@pytest.mark.parametrize(("batch", "chunk"), [(1, 4), (3, 5), (7, 32), (16, 1)])
def test_batch_and_chunk_change_nothing_but_the_order_of_sums(
    random_model_dir: Callable[..., Path], tmp_path: Path, batch: int, chunk: int
) -> None:
    """A GEMM of another number of rows may sum in another order: equal within float32's rounding, not bit for bit."""
    model_dir, data = random_model_dir(kv_heads=2), make_data(tune=0)
    one = calibrate(model_dir, data, tmp_path / "one", OPTIONS)
    other = calibrate(model_dir, data, tmp_path / "other", dataclasses.replace(OPTIONS, batch=batch, chunk=chunk))
    for name, tensor in one.tensors().items():
        if "histograms" not in name:
            torch.testing.assert_close(other.tensors()[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_lm_head_in_pieces_is_the_whole_head(
    random_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir, data = random_model_dir(), make_data(tune=0)
    whole = calibrate(model_dir, data, tmp_path / "whole", OPTIONS)
    monkeypatch.setattr(layer_walk, "HEAD_ROWS", 20)
    pieces = calibrate(model_dir, data, tmp_path / "pieces", OPTIONS)
    torch.testing.assert_close(pieces.outputs["lm_head"], whole.outputs["lm_head"], rtol=1e-5, atol=1e-6)
    assert torch.equal(pieces.histograms["lm_head.input"], whole.histograms["lm_head.input"])
    assert pieces.histograms["lm_head.output"].sum() == data.ranges.numel() * 97


def test_the_source_is_recorded(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir = random_model_dir()
    ranges = calibrate(model_dir, make_data(), tmp_path / "out", OPTIONS)
    (source,) = ActivationRanges.load(tmp_path / "out").source
    assert (source,) == ranges.source
    assert dataclasses.astuple(source) == (
        "random 0", "0" * 64, 7, LENGTH, 70, HFCheckpoint.open(model_dir).fingerprint(), "float32",
    )  # fmt: skip
    ranges.require_model(HFCheckpoint.open(model_dir).fingerprint())
    with pytest.raises(CheckpointError, match="the ranges are of model"):
        ranges.require_model(HFCheckpoint.open(random_model_dir(seed=1)).fingerprint())


@pytest.mark.parametrize("events", [1, 3, 4, 6, 8])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    random_model_dir: Callable[..., Path], tmp_path: Path, events: int
) -> None:
    """Two chunks of 3 steps, then one or two of rows: stopped within and at the end of each."""
    model_dir, data = random_model_dir(kv_heads=2), make_data()
    calibrate(model_dir, data, tmp_path / "straight", OPTIONS)
    with pytest.raises(Cancelled):
        calibrate(model_dir, data, tmp_path / "stopped", OPTIONS, report=stop_after(events))
    assert not (tmp_path / "stopped").exists()
    tokens = []
    calibrate(model_dir, data, tmp_path / "stopped", OPTIONS, report=lambda event: tokens.append(event.done))
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "straight")
    assert set(files_of(tmp_path / "straight")) == {"ranges.safetensors", "rows.safetensors"}
    assert len(tokens) == (9 if events <= 3 else 6 if events <= 6 else 3)
    assert not (tmp_path / "stopped.partial").exists()


def test_rows_of_an_unknown_run_are_not_taken_over(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir = random_model_dir()
    calibrate(model_dir, make_data(0), tmp_path / "other", OPTIONS)
    (tmp_path / "out.partial").mkdir()
    shutil.copy(tmp_path / "other" / "rows.safetensors", tmp_path / "out.partial")
    calibrate(model_dir, make_data(1), tmp_path / "out", OPTIONS)
    assert not torch.equal(load_rows(tmp_path / "out")("lm_head"), load_rows(tmp_path / "other")("lm_head"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch": 1}, "batch 2, now 1"),
        ({"chunk": 5}, "chunk 4, now 5"),
        ({"dtype": "bfloat16"}, "dtype float32, now bfloat16"),
        ({"rows": 5}, "rows 12, now 5"),
    ],
)
def test_a_stopped_run_of_other_options_is_not_gone_on_with(
    random_model_dir: Callable[..., Path], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    model_dir, data = random_model_dir(), make_data()
    with pytest.raises(Cancelled):
        calibrate(model_dir, data, tmp_path / "out", OPTIONS, report=stop_after(4))
    other = dataclasses.replace(OPTIONS, **change)
    with pytest.raises(CheckpointError, match=f"unfinished calibration of other choices: {told}; give the same again"):
        calibrate(model_dir, data, tmp_path / "out", other)
    forced = calibrate(model_dir, data, tmp_path / "out", other, force=True)
    straight = calibrate(model_dir, data, tmp_path / "straight", other)
    assert all(torch.equal(tensor, forced.tensors()[name]) for name, tensor in straight.tensors().items())


def test_a_stopped_run_of_other_text_or_model_is_not_gone_on_with(
    random_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        calibrate(random_model_dir(), make_data(), tmp_path / "out", OPTIONS, report=stop_after(4))
    with pytest.raises(CheckpointError, match=r"text .*dataset random 0, now random 1"):
        calibrate(random_model_dir(), make_data(1), tmp_path / "out", OPTIONS)
    with pytest.raises(CheckpointError, match="other choices: model "):
        calibrate(random_model_dir(seed=1), make_data(), tmp_path / "out", OPTIONS)


def test_an_output_that_exists_is_kept_without_force(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir, out = random_model_dir(), tmp_path / "out"
    calibrate(model_dir, make_data(0), out, OPTIONS)
    before = files_of(out)
    with pytest.raises(CheckpointError, match="exists; add --force to replace it"):
        calibrate(model_dir, make_data(1), out, OPTIONS)
    assert files_of(out) == before
    calibrate(model_dir, make_data(1), out, OPTIONS, force=True)
    assert files_of(out) != before
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="is no folder of a calibration that this command wrote; give another"):
        calibrate(model_dir, make_data(), tmp_path / "mine", OPTIONS, force=True)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model.layers.1.mlp.down_proj.weight", r"layer 1, tap layers\.1\.mlp\.down"),
        ("model.layers.0.self_attn.k_proj.weight", r"layer 0, tap layers\.0\.attention\.qkv"),
        ("model.layers.1.post_attention_layernorm.weight", r"layer 1, tap layers\.1\.mlp_norm"),
        ("lm_head.weight", "tap logits"),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_name_their_layer_and_tap(
    random_model_dir: Callable[..., Path], tmp_path: Path, tensor: str, place: str, bad: float
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(random_model_dir(), model_dir)
    tensors = load_file(model_dir / "model.safetensors")
    tensors[tensor].view(-1)[0] = bad
    save_file(tensors, model_dir / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"NaN or infinite activations in {place}; calibrate in float32"):
        calibrate(model_dir, make_data(), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_rows_are_the_inputs_of_the_chosen_tokens(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir, data = random_model_dir(kv_heads=2), make_data(tune=9)
    calibrate(model_dir, data, tmp_path / "out", OPTIONS)
    rows, taps = load_rows(tmp_path / "out"), all_taps(model_dir, data.tune)
    kept = spread(9, LENGTH, OPTIONS.rows)
    assert len(rows.linears) == 9
    for layer in range(2):
        for site, (read, _) in PLACES.items():
            found, expected = rows(f"layers.{layer}.{site}"), taps[f"layers.{layer}.{read}"][kept]
            assert len(found) == OPTIONS.rows
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows("lm_head"), taps["final_norm"][kept], rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"holds no rows of 'lm_haed'; did you mean 'lm_head'"):
        rows("lm_haed")


def test_without_tune_windows_there_are_no_rows(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    calibrate(random_model_dir(), make_data(tune=0), tmp_path / "out", OPTIONS)
    with pytest.raises(CheckpointError, match=r"rows\.safetensors is missing; run workbench calibrate with tune"):
        load_rows(tmp_path / "out")


@pytest.mark.parametrize(
    ("windows", "length", "count"), [(16, 512, 256), (3, 10, 12), (1, 7, 3), (4, 5, 20), (2, 4, 99)]
)
def test_chosen_tokens_are_spread_evenly_over_windows_and_positions(windows: int, length: int, count: int) -> None:
    kept = spread(windows, length, count)
    assert kept.shape == (windows, length)
    assert kept.sum() == min(count, windows * length)
    assert torch.equal(kept, spread(windows, length, count))
    per_window = kept.sum(1)
    assert per_window.max() - per_window.min() <= 1
    if count < windows * length:
        assert kept[:, 0].sum() <= 1 + windows * count / (windows * length) * 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"dtype": "int8"}, "calibration dtype is 'int8'; allowed: float32, float16, bfloat16"),
        ({"batch": 0}, "calibration batch is 0; allowed: whole numbers from 1"),
        ({"chunk": -1}, "calibration chunk is -1"),
        ({"rows": 0}, "calibration rows is 0"),
    ],
)
def test_impossible_options_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CalibrationOptions(**choice)


def test_windows_that_do_not_fit_the_model_are_refused(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir = random_model_dir(max_positions=8)

    def refused(ids: torch.Tensor, message: str) -> None:
        with pytest.raises(LimitError, match=message):
            calibrate(model_dir, CalibrationWindows(ids, "", ""), tmp_path / "out", OPTIONS)

    refused(
        torch.zeros(2, 9, dtype=torch.int64), "windows of 9 tokens; allowed: up to 8, the model's positions; give a"
    )
    refused(torch.full((2, 8), 97), "token id 97; allowed: 0 to 96; the tokenizer belongs to another model")
    refused(torch.zeros(0, 8, dtype=torch.int64), "no window of tokens to calibrate with; give more text")


def test_a_device_that_is_not_there_is_refused(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="device 'tpu'; allowed: cpu, cuda, cuda:N"):
        calibrate(random_model_dir(), make_data(), tmp_path / "out", dataclasses.replace(OPTIONS, device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="device 'cuda' is not there: torch finds no CUDA GPU; use device 'cpu'"):
            calibrate(random_model_dir(), make_data(), tmp_path / "out", dataclasses.replace(OPTIONS, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_sees_what_the_cpu_sees(random_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model_dir, data = random_model_dir(kv_heads=2), make_data()
    cpu = calibrate(model_dir, data, tmp_path / "cpu", OPTIONS)
    gpu = calibrate(model_dir, data, tmp_path / "gpu", dataclasses.replace(OPTIONS, device="cuda"))
    for name, tensor in cpu.tensors().items():
        if "histograms" not in name:
            torch.testing.assert_close(gpu.tensors()[name], tensor, rtol=1e-4, atol=1e-5)
    for name, counts in cpu.histograms.items():
        assert gpu.histograms[name].sum() == counts.sum()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_four_gigabytes_calibrate_in_little_memory(tmp_path: Path) -> None:
    figures = measure_in_fresh_process(tmp_path, FOUR_GB)
    assert figures["source_bytes"] > 4e9
    assert 0 < figures["peak_anonymous_bytes"] < 2.5e9
