"""Two models side by side: which taps of them can be compared, in what precision, and what float64 says.

Opens the two folders of the command line; other ways to come by a model are not known here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.errors import CheckpointError
from workbench.evaluation.layer_diff import DiffOptions, LayerDiff
from workbench.evaluation.memory import largest_tensor, parameters, require_memory
from workbench.evaluation.tap_error import DIVERGENCE
from workbench.evaluation.tap_stream import HasTaps
from workbench.evaluation.texts import offline_text, windows
from workbench.model.rotary import stretched
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.recipe import SmoothQuant
from workbench.runtime.session import SessionOptions, TorchSession
from workbench.runtime.tokenizer import load_tokenizer

# By smoothing group: the taps that its scale passes through. o's goes through V, down's through up.
_RESCALED: dict[str, tuple[str, ...]] = {
    "qkv": ("attention_norm",),
    "gate_up": ("mlp_norm",),
    "o": ("attention.qkv", "attention.value", "attention.context"),
    "down": ("mlp.gate_up", "mlp.act"),
}


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and on what.

    Attributes:
        text: the text; None takes :func:`workbench.evaluation.texts.offline_text`.
        windows, length: how many windows, of how many tokens each.
        float64: run both sides again in float64 on the first window, to tell a bug from rounding.
        backend: op set of the checkpoint's side, "cpu" or "torch".
        reference_dtype: of the Hugging Face side.
        tokenizer_dir: folder with ``tokenizer.json`` or ``tokenizer.model``; None takes the model's.
        trust_remote_code: run the tokenizer's own code.
    """

    text: str | None = None
    windows: int = 4
    length: int = 256
    float64: bool = False
    backend: str = "cpu"
    reference_dtype: torch.dtype = torch.float32
    tokenizer_dir: str | Path | None = None
    trust_remote_code: bool = False


def compare_folders(
    model_dir: str | Path,
    checkpoint_dir: str | Path,
    options: CompareOptions | None = None,
    report: Reporter = silent,
) -> LayerDiff:
    """Hugging Face's model of ``model_dir`` against our checkpoint made from it.

    Raises:
        CheckpointError: a folder that cannot be read, or a checkpoint of a model of another size.
        LimitError: a text too short for the windows, or memory too small for the rerun in float64.
    """
    from workbench.evaluation.hf_reference import HFReference

    options = options or CompareOptions()
    checkpoint = load_checkpoint(checkpoint_dir)
    original = HFCheckpoint.open(model_dir)
    original = dataclasses.replace(original, config=stretched(original.config, checkpoint.recipe.max_positions))
    check_same_size(original, checkpoint)
    ids, tokenizer = _windows(model_dir, options)
    dtype = options.reference_dtype
    hugging_face = HFReference.from_weights(original.config, original.weights(dtype), dtype)
    session = TorchSession.open(checkpoint, options.backend)
    reference = Side(f"Hugging Face {dtype_name(dtype)}", hugging_face, dtype_name(dtype))
    candidate = Side("ours", session, precision_of(checkpoint), checkpoint)
    diff = compare_sides(reference, candidate, ids, tokenizer, report)
    del reference, hugging_face
    session.close()
    if not options.float64:
        return diff
    return diff.with_float64(*float64_reruns(original, (None, checkpoint), ids[:1], report))


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two models that are compared.

    Attributes:
        name: what tables and plots call it.
        model: gives logits and taps.
        precision: of its taps, a key of :data:`workbench.evaluation.tap_error.DIVERGENCE`.
        checkpoint: whose weights it runs; None for the original model.
    """

    name: str
    model: HasTaps
    precision: str
    checkpoint: Checkpoint | None = None


def compare_sides(
    reference: Side, candidate: Side, ids: Tensor, tokenizer: Any = None, report: Reporter = silent
) -> LayerDiff:
    """Two forms of one model on windows of tokens ``[windows, length]`` int64, judged by the coarser one's precision.

    Raises:
        LimitError, WorkbenchError: as :meth:`LayerDiff.compare`.
    """
    precision = max(reference.precision, candidate.precision, key=lambda name: DIVERGENCE[name])
    left_out = incomparable_sites(reference.checkpoint, candidate.checkpoint)
    names = DiffOptions(precision, reference.name, candidate.name, left_out, tokenizer)
    return LayerDiff.compare(reference.model, candidate.model, ids, names, report)


def float64_reruns(
    original: HFCheckpoint, sides: tuple[Checkpoint | None, Checkpoint | None], ids: Tensor, report: Reporter = silent
) -> tuple[LayerDiff, LayerDiff | None]:
    """Two models in float64 on the CPU.

    Args:
        original: the model that both were made from.
        sides: reference and candidate; None is Hugging Face with the original's weights.
        ids: token ids ``[windows, length]``.
        report: told the runs.

    Returns:
        The difference in float64, and that with the candidate's weights on both sides. The latter is None where it
        says nothing (the reference is not Hugging Face) or cannot be had (Hugging Face cannot run quantized
        activations, keys and values).

    Raises:
        LimitError: it does not fit into memory (:func:`float64_bytes`); nothing has been opened then.
    """
    reference, candidate = sides
    require_memory("the rerun in float64", float64_bytes(original, reference), "cpu")
    names = DiffOptions("float64", "reference", "candidate", incomparable_sites(reference, candidate))
    tells_code = reference is None and candidate is not None and runs_in_hugging_face(candidate)
    runs = 2 if tells_code else 1
    ours = _in_float64(original, candidate)
    diff = LayerDiff.compare(_in_float64(original, reference), ours, ids, names, _nested(report))
    report(ProgressEvent("compare in float64", 1, runs, "runs"))
    if not tells_code or candidate is None:
        return diff, None
    from workbench.evaluation.hf_reference import HFReference

    theirs = HFReference.from_weights(candidate.config, candidate.weights, torch.float64)
    same_weights = LayerDiff.compare(theirs, ours, ids, names, _nested(report))
    report(ProgressEvent("compare in float64", runs, runs, "runs"))
    return diff, same_weights


def float64_bytes(original: HFCheckpoint, reference: Checkpoint | None) -> int:
    """Memory that :func:`float64_reruns` takes at once: Hugging Face holds every weight in float64, ours one at a time.

    Args:
        original: the model that both sides were made from.
        reference: the reference's side; None is Hugging Face.
    """
    held = 0 if reference is not None else parameters(original.config)
    return torch.float64.itemsize * (held + largest_tensor(original.config))


def runs_in_hugging_face(checkpoint: Checkpoint) -> bool:
    """Whether Hugging Face can run a checkpoint's weights: only weights are quantized."""
    return not isinstance(checkpoint.recipe.weights, SmoothQuant) and checkpoint.recipe.kv_cache is None


def precision_of(checkpoint: Checkpoint) -> str:
    """The name under which a checkpoint's errors are judged and drawn: its weights' kind, else its dtype."""
    recipe = checkpoint.recipe
    if recipe.weights is not None:
        return str(recipe.weights.kind)
    return recipe.dtype if recipe.kv_cache is None else "int8 KV cache"


def rescaled_sites(checkpoint: Checkpoint) -> frozenset[str]:
    """Sites whose values a checkpoint's smoothing divided or multiplied: they cannot equal the original's."""
    smoothing = _smoothing(checkpoint)
    groups = () if smoothing is None else smoothing.groups
    return frozenset(site for group in groups for site in _RESCALED[group])


def incomparable_sites(reference: Checkpoint | None, candidate: Checkpoint | None) -> frozenset[str]:
    """Sites that hold other values in two models by design: either's smoothing moved scale into or out of them.

    None is the original model. Two models that were smoothed alike differ nowhere by design.
    """
    if reference is not None and candidate is not None and _smoothed_alike(reference, candidate):
        return frozenset()
    return frozenset(site for side in (reference, candidate) if side is not None for site in rescaled_sites(side))


def _smoothed_alike(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether both are known to carry the same scales: the choices say so, and the norms, which show the ranges."""
    first, second = _smoothing(one), _smoothing(other)
    if first is None or second is None or not {"qkv", "gate_up"} & set(first.groups):
        return first is second
    chosen = [(how.groups, how.alpha, how.alpha_by_group) for how in (first, second)]
    return chosen[0] == chosen[1] and all(
        torch.equal(ours.attention_norm, theirs.attention_norm) and torch.equal(ours.mlp_norm, theirs.mlp_norm)
        for ours, theirs in zip(one.weights.layers, other.weights.layers, strict=True)
    )


def _smoothing(checkpoint: Checkpoint) -> SmoothQuant | None:
    weights = checkpoint.recipe.weights
    return weights if isinstance(weights, SmoothQuant) else checkpoint.smoothing


def _in_float64(original: HFCheckpoint, side: Checkpoint | None) -> HasTaps:
    wide = torch.float64
    if side is None:
        from workbench.evaluation.hf_reference import HFReference  # it takes seconds to import

        return HFReference.from_weights(original.config, original.weights(wide), wide)
    return TorchSession(side.config, side.weights, SessionOptions(wide, "torch"))


def _nested(report: Reporter) -> Reporter:
    return lambda event: report(dataclasses.replace(event, depth=event.depth + 1))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _windows(model_dir: str | Path, options: CompareOptions) -> tuple[Tensor, Any]:
    """Token ids, and the tokenizer that cut them."""
    tokenizer = load_tokenizer(options.tokenizer_dir or model_dir, trust_remote_code=options.trust_remote_code)
    text = offline_text() if options.text is None else options.text
    return windows(tokenizer, text, options.windows, options.length), tokenizer


def check_same_size(original: HFCheckpoint, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of a model of another size.

    Raises:
        CheckpointError: says which number differs.
    """
    for item in dataclasses.fields(original.config):
        ours, theirs = getattr(checkpoint.config, item.name), getattr(original.config, item.name)
        if ours != theirs:
            raise CheckpointError(
                f"the checkpoint {checkpoint.folder} has {item.name} {ours}, the model {original.folder} {theirs}",
                fix="compare a checkpoint with the model that it was converted from",
            )
