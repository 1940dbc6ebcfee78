"""Is the network the model? The finished ``INetworkDefinition`` is executed on the CPU and judged tap by tap.

Three runs see the same token ids (a ragged prefill, then decode steps): the torch op set in float64 (the reference),
the torch op set in the network's precision, and the network in the interpreter. The network passes where its error
against float64 is at most ``RATIO`` times the torch op set's own. What this does not cover is said in ``COVERS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.backends.torch_ops import TorchOps
from workbench.engine.interpreter import Interpreter
from workbench.engine.needs import FULL_CACHE_BYTES, PROMPT_LENGTHS, SAMPLE_CACHE_BYTES, sampled_layers
from workbench.engine.network import DecoderNetwork
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, Step
from workbench.model.taps import LAYER_SITES, layer_tap
from workbench.model.weights import DenseWeight, Int4GroupWeight, LinearWeight
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.runtime.kv_cache import KVCache

RATIO = 1.25
# Relative L2 below which errors are float32 noise whatever their ratio.
NOISE_FLOOR = 2.4e-7
# Values of one weight that the torch op set computes with at once, in float64 as in float32.
CHUNK_VALUES = 1 << 24
COVERS = (
    "covers: the network's layers, types, shapes, constants and cache updates, executed on the CPU; "
    "does not cover: the numerics of the compiled kernels, and layer semantics that were read from documentation"
)


@dataclass(frozen=True)
class CheckOptions:
    """What to run.

    Attributes:
        prompt_lengths: one ragged prefill of random ids, right-padded.
        decode_steps: single-token steps after it.
        sample: check the first, the middle and the last layer and the head alone, for models too large to run whole.
        seed: of the token ids.
    """

    prompt_lengths: tuple[int, ...] = PROMPT_LENGTHS
    decode_steps: int = 3
    sample: bool = False
    seed: int = 0


@dataclass(frozen=True)
class NetworkCheck:
    """The verdict.

    Attributes:
        frame: one row per tap: ``tap``, ``torch_error`` and ``network_error`` (relative L2 against float64 over all
            steps), ``ratio`` and ``passed``.
        sampled: whether only some layers ran.
    """

    frame: pd.DataFrame
    sampled: bool

    @property
    def passed(self) -> bool:
        return bool(self.frame["passed"].all())

    def __bool__(self) -> bool:
        return self.passed

    @property
    def limits_text(self) -> str:
        return COVERS

    @property
    def worst(self) -> dict[Any, Any]:
        """The row with the largest ratio."""
        return self.frame.sort_values("ratio").to_dict("records")[-1]

    @property
    def failures(self) -> pd.DataFrame:
        return self.frame[~self.frame["passed"]]


def check_network(
    trt: Any, network: DecoderNetwork, options: CheckOptions | None = None, report: Reporter = silent
) -> NetworkCheck:
    """Run the three and compare.

    Args:
        trt: the TensorRT module that the network belongs to.
        network: a whole model on one rank.
        options: what to run; prompts are cut to what the network's limits and vocabulary allow.
        report: progress, in steps.
    """
    options = options or CheckOptions()
    layers = sampled_layers(network.model.config.num_layers) if options.sample else None
    batches = _batches(network, options)
    wide = _TorchRun(network.model, torch.float64, layers)
    narrow = _TorchRun(network.model, network.dtype, layers)
    interpreted = _NetworkRun(trt, network, layers)
    errors = _Errors()
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            report(ProgressEvent("check the network", number, len(batches)))
            reference, own = wide.run(batch), narrow.run(batch)
            errors.add(batch, reference, own, interpreted.run(batch, own))
    report(ProgressEvent("check the network", len(batches), len(batches)))
    return NetworkCheck(errors.frame(), options.sample)


@dataclass(frozen=True)
class _Batch:
    """Token ids of one step, right-padded, and how many of each row are real."""

    ids: Tensor
    start: Tensor
    lengths: Tensor

    def step(self) -> Step[Tensor]:
        positions = self.start[:, None] + torch.arange(self.ids.shape[1])
        return Step(self.ids, positions, self.start.int(), (self.lengths - 1).int())

    def valid(self, tap: Tensor) -> Tensor:
        """The rows of a tap that belong to real tokens, flattened to ``[tokens, ...]``."""
        seq = self.ids.shape[1]
        mask = torch.arange(seq) < self.lengths[:, None]
        if tap.dim() == 4:  # [batch, heads, seq, head_dim]
            return tap.transpose(1, 2)[mask]
        return tap[mask] if tap.shape[1] == seq else tap[:, 0]


def _batches(network: DecoderNetwork, options: CheckOptions) -> list[_Batch]:
    limits = network.limits
    longest = min(limits.max_input_len, network.model.config.max_position_embeddings - options.decode_steps)
    lengths = [min(length, longest) for length in options.prompt_lengths[: limits.max_batch_size]]
    generator = torch.Generator().manual_seed(options.seed)

    def ids(width: int) -> Tensor:
        return torch.randint(0, network.model.config.vocab_size, (len(lengths), width), generator=generator)

    start = torch.zeros(len(lengths), dtype=torch.long)
    batches = [_Batch(ids(max(lengths)), start, torch.tensor(lengths))]
    for index in range(min(options.decode_steps, limits.max_output_len)):
        batches.append(_Batch(ids(1), torch.tensor(lengths) + index, torch.ones_like(start)))
    return batches


class _FrugalOps(TorchOps):
    """The torch op set, which never holds more than a part of a weight in the type that it computes in."""

    def linear(self, x: Tensor, weight: LinearWeight, name: str) -> Tensor:
        parts = [super(_FrugalOps, self).linear(x, part, name) for part in _row_parts(weight)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _row_parts(weight: LinearWeight) -> Iterator[LinearWeight]:
    """A linear layer as several, each for some of its output channels."""
    rows, columns = weight.weight.shape
    values = columns * (2 if isinstance(weight, Int4GroupWeight) else 1)
    step = max(1, CHUNK_VALUES // values)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        bias = None if weight.bias is None else weight.bias[part]
        if isinstance(weight, DenseWeight):
            yield DenseWeight(weight.weight[part], bias)
        else:
            yield replace(weight, weight=weight.weight[part], weight_scale=weight.weight_scale[part], bias=bias)


class _TorchRun:
    """The model over the plain torch op set; keeps its own cache."""

    def __init__(self, model: InternLM, dtype: torch.dtype, layers: Sequence[int] | None) -> None:
        self.model = model
        self.layers = list(model.layer_indices) if layers is None else list(layers)
        self.whole = layers is None
        self.taps: dict[str, Tensor] = {}
        self.ops = _FrugalOps(dtype, on_tap=self.taps.__setitem__)
        self.cache: KVCache | None = None

    def run(self, batch: _Batch) -> dict[str, Tensor]:
        self.taps.clear()
        step = batch.step()
        cache = self._reserved(batch)
        if self.whole:
            updates = self.model.forward(self.ops, step, cache.layers).updates
        else:
            hidden = self.model.enter(self.ops, step)
            layers = [self.model.weights.layers[index] for index in self.layers]
            updates = [
                self.model.layer(self.ops, step, (index, weights, held), (hidden, None))[2]
                for index, weights, held in zip(self.layers, layers, cache.layers, strict=True)
            ]
            self.model.leave(self.ops, step, hidden, None)
        cache.apply(updates, batch.start)
        return dict(self.taps)

    def _reserved(self, batch: _Batch) -> KVCache:
        if self.cache is None:
            model = self.model
            shape = (len(batch.ids), model.num_kv_heads, 64, model.config.head_dim)
            dtypes = [cache_dtype(model, index, self.ops.dtype) for index in self.layers]
            self.cache = KVCache(
                [LayerCache(torch.zeros(shape, dtype=kind), torch.zeros(shape, dtype=kind)) for kind in dtypes],
                max_len=model.config.max_position_embeddings,
            )
        self.cache.reserve(int(batch.start.max()) + batch.ids.shape[1])
        return self.cache


def cache_dtype(model: InternLM, layer: int, dtype: torch.dtype) -> torch.dtype:
    """What the cache of one layer holds: int8 where scales go with it."""
    return dtype if model.weights.layers[layer - model.layer_indices[0]].kv_scales is None else torch.int8


class _NetworkRun:
    """The network in the interpreter; sampled layers are handed their input instead of computing what is before."""

    def __init__(self, trt: Any, network: DecoderNetwork, layers: Sequence[int] | None) -> None:
        self.network = network
        self.layers = list(network.model.layer_indices) if layers is None else list(layers)
        self.whole = layers is None
        self.interpreter = Interpreter(
            trt,
            network.network,
            network.record.constants,
            cache_bytes=FULL_CACHE_BYTES if self.whole else SAMPLE_CACHE_BYTES,
        )
        self.taps = {tap: name for tap, name in network.record.taps.items() if self.whole or self._sampled(tap)}
        self.caches: dict[str, Tensor] = {}

    def _sampled(self, tap: str) -> bool:
        names = {layer_tap(layer, site) for layer in self.layers for site in LAYER_SITES}
        return not tap.startswith("layers.") or tap in names

    def run(self, batch: _Batch, own: dict[str, Tensor]) -> dict[str, Tensor]:
        caches = self.caches or self._empty(len(batch.ids))
        step = batch.step()
        assert step.last_token is not None
        feeds = {
            "input_ids": step.ids.int(),
            "position_ids": step.positions,
            "start": step.start,
            "last_token": step.last_token,
            **caches,
        }
        given = {} if self.whole else self._given(batch, own)
        present = [name for layer in self.layers for name in self._cache_outputs(layer)]
        wanted = sorted({*self.taps.values(), *present} - set(given))
        found = {**self.interpreter.run(feeds, wanted, given), **given}
        self.caches = self._next(caches, found, batch)
        return {tap: found[name] for tap, name in self.taps.items()}

    def _given(self, batch: _Batch, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inner tensors that stand for the layers which are left out."""
        hidden = own["embedding"].to(self.network.dtype)
        last = hidden[torch.arange(len(hidden)), batch.lengths - 1][:, None]
        inner = {layer_tap(layer, "residual_pre"): hidden for layer in self.layers if layer}
        return {self.taps[tap]: value for tap, value in {**inner, "residual_final": last}.items()}

    def _empty(self, batch: int) -> dict[str, Tensor]:
        model = self.network.model
        shape = (batch, model.num_kv_heads, self.network.limits.max_seq_len, model.config.head_dim)
        return {
            f"past_{part}.{layer}": torch.zeros(shape, dtype=cache_dtype(model, layer, self.network.dtype))
            for layer in self.layers
            for part in ("key", "value")
        }

    def _cache_outputs(self, layer: int) -> list[str]:
        known = set(self.network.output_names)
        return [
            f"{form}_{part}.{layer}"
            for form in ("present", "new")
            for part in ("key", "value")
            if f"{form}_{part}.{layer}" in known
        ]

    def _next(self, caches: dict[str, Tensor], found: dict[str, Tensor], batch: _Batch) -> dict[str, Tensor]:
        following = {}
        for name, held in caches.items():
            place = name.removeprefix("past_")
            if f"present_{place}" in found:
                following[name] = found[f"present_{place}"]
                continue
            rows, following[name] = found[f"new_{place}"], held.clone()
            for sequence, first in enumerate(batch.start.tolist()):
                following[name][sequence, :, first : first + rows.shape[2]] = rows[sequence]
        return following


@dataclass
class _Errors:
    """Squared errors per tap, summed over steps."""

    reference: dict[str, float] = field(default_factory=dict)
    torch_error: dict[str, float] = field(default_factory=dict)
    network_error: dict[str, float] = field(default_factory=dict)

    def add(
        self, batch: _Batch, reference: dict[str, Tensor], own: dict[str, Tensor], network: dict[str, Tensor]
    ) -> None:
        for tap, value in network.items():
            truth = batch.valid(reference[tap]).double()
            for total, candidate in ((self.torch_error, own[tap]), (self.network_error, value)):
                difference = batch.valid(candidate).double() - truth
                total[tap] = total.get(tap, 0.0) + float(difference.square().sum())
            self.reference[tap] = self.reference.get(tap, 0.0) + float(truth.square().sum())

    def frame(self) -> pd.DataFrame:
        rows = []
        for tap, energy in self.reference.items():
            energy = max(energy, 1e-300)
            own, network = ((total[tap] / energy) ** 0.5 for total in (self.torch_error, self.network_error))
            passed = network <= max(RATIO * own, NOISE_FLOOR)
            ratio = network / own if own > 0 else float(network > 0)
            rows.append({"tap": tap, "torch_error": own, "network_error": network, "ratio": ratio, "passed": passed})
        return pd.DataFrame(rows)
