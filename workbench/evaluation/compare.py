"""From two folders to a layer difference: opens both, cuts the text, runs the reruns. The work is done elsewhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.errors import CheckpointError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.layer_diff import DiffOptions, LayerDiff
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
        LimitError: a text too short for the windows.
    """
    options = options or CompareOptions()
    checkpoint = load_checkpoint(checkpoint_dir)
    original = HFCheckpoint.open(model_dir)
    original = dataclasses.replace(original, config=stretched(original.config, checkpoint.recipe.max_positions))
    _check_same_size(original, checkpoint)
    ids = _window_ids(model_dir, options)
    names = DiffOptions(
        precision_of(checkpoint),
        f"Hugging Face {dtype_name(options.reference_dtype)}",
        rescaled_sites=rescaled_sites(checkpoint),
    )
    reference = HFReference.from_weights(
        original.config, original.weights(options.reference_dtype), options.reference_dtype
    )
    candidate = TorchSession.open(checkpoint, options.backend)
    diff = LayerDiff.compare(reference, candidate, ids, names, report)
    del reference
    candidate.close()
    if not options.float64:
        return diff
    return diff.with_float64(*float64_reruns(original, checkpoint, ids[:1], report))


def float64_reruns(
    original: HFCheckpoint, checkpoint: Checkpoint, ids: Tensor, report: Reporter = silent
) -> tuple[LayerDiff, LayerDiff]:
    """Both sides in float64: first with the checkpoint's weights on both, then with the original's on the reference."""
    wide, diffs = torch.float64, []
    candidate = TorchSession(checkpoint.config, checkpoint.weights, SessionOptions(wide, "torch"))
    names = DiffOptions("float64", "Hugging Face float64", rescaled_sites=rescaled_sites(checkpoint))
    for done, weights in enumerate((checkpoint.weights, original.weights(wide)), start=1):
        reference = HFReference.from_weights(checkpoint.config, weights, wide)
        diffs.append(LayerDiff.compare(reference, candidate, ids, names))
        report(ProgressEvent("compare in float64", done, 2, "runs"))
    return diffs[0], diffs[1]


def precision_of(checkpoint: Checkpoint) -> str:
    """The name under which a checkpoint's errors are judged and drawn: its weights' kind, else its dtype."""
    recipe = checkpoint.recipe
    if recipe.weights is not None:
        return str(recipe.weights.kind)
    return recipe.dtype if recipe.kv_cache is None else "int8 KV cache"


def rescaled_sites(checkpoint: Checkpoint) -> frozenset[str]:
    """Sites whose values a checkpoint's smoothing divided or multiplied: they cannot equal the original's."""
    weights = checkpoint.recipe.weights
    smoothing = weights if isinstance(weights, SmoothQuant) else checkpoint.smoothing
    groups = () if smoothing is None else smoothing.groups
    return frozenset(site for group in groups for site in _RESCALED[group])


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _window_ids(model_dir: str | Path, options: CompareOptions) -> Tensor:
    text = offline_text() if options.text is None else options.text
    tokenizer = load_tokenizer(options.tokenizer_dir or model_dir, trust_remote_code=options.trust_remote_code)
    return windows(tokenizer, text, options.windows, options.length)


def _check_same_size(original: HFCheckpoint, checkpoint: Checkpoint) -> None:
    for item in dataclasses.fields(original.config):
        ours, theirs = getattr(checkpoint.config, item.name), getattr(original.config, item.name)
        if ours != theirs:
            raise CheckpointError(
                f"the checkpoint {checkpoint.folder} has {item.name} {ours}, the model {original.folder} {theirs}",
                fix="compare a checkpoint with the model that it was converted from",
            )
