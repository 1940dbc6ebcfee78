"""What every test may use: the demo model, random models, checkpoints made from them. Offline."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when torch is imported, here and in every process that a test starts. Tests run side by side, one a core: threads
# of several would spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock

if TYPE_CHECKING:
    from workbench.quantization.alpha_search import AlphaSearch
    from workbench.quantization.kv_error import KVStudy
    from workbench.recipe import Recipe

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    # Read when a kernel is defined: without a GPU, Triton's kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The demo model, as `make demo` writes it; made once per working tree."""
    from workbench.checkpoint.demo import write_demo_model

    folder = ROOT / "demo" / "model"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.parent / ".model.lock"):  # tests may run in several processes
        write_demo_model(folder)
    return folder


@pytest.fixture(scope="session")
def demo_tokenizer(demo_model_dir: Path) -> Any:
    """The demo model's tokenizer."""
    from workbench.runtime.tokenizer import load_tokenizer

    return load_tokenizer(demo_model_dir)


@pytest.fixture(scope="session")
def random_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``random_model_dir(kv_heads=2, bias=False)``: the folder of such a random model; one per choice and session."""
    from workbench.checkpoint.demo import RandomModelSpec, write_random_model

    made: dict[RandomModelSpec, Path] = {}

    def make(**choices: Any) -> Path:
        spec = RandomModelSpec(**choices)
        if spec not in made:
            made[spec] = tmp_path_factory.mktemp("random") / "model"
            write_random_model(made[spec], spec)
        return made[spec]

    return make


@pytest.fixture(scope="session")
def random_calibration(random_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of ``random_model_dir()`` (two layers) with held-out rows."""
    from tests.quantization.calibrated_models import calibrated

    folder = tmp_path_factory.mktemp("calibration") / "ranges"
    calibrated(random_model_dir(), folder)
    return folder


@pytest.fixture(scope="session")
def random_search(random_model_dir: Callable[..., Path], random_calibration: Path) -> AlphaSearch:
    """Errors of ``random_model_dir()`` by alpha."""
    from workbench.checkpoint.huggingface import HFCheckpoint
    from workbench.quantization.alpha_search import AlphaSearch
    from workbench.quantization.ranges import ActivationRanges
    from workbench.quantization.row_sample import load_rows

    ranges, rows = ActivationRanges.load(random_calibration), load_rows(random_calibration)
    return AlphaSearch(HFCheckpoint.open(random_model_dir()), ranges, rows)


@pytest.fixture(scope="session")
def spoiling_search(random_search: AlphaSearch) -> AlphaSearch:
    """``random_search`` by whose ranges one channel of layer 1's o is a thousandth of what it is.

    A large alpha divides that channel's values by as little: the first KV head's scale is spent on it.
    """
    import dataclasses

    from workbench.quantization.alpha_search import AlphaSearch

    inputs = dict(random_search.ranges.inputs)
    channels = inputs["layers.1.attention.o"].clone()
    channels[0] *= 1e-3
    ranges = dataclasses.replace(random_search.ranges, inputs={**inputs, "layers.1.attention.o": channels})
    return AlphaSearch(random_search.source, ranges, random_search.rows)


@pytest.fixture(scope="session")
def random_kv_study(
    random_model_dir: Callable[..., Path], random_calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> KVStudy:
    """Errors of ``random_model_dir()``'s attention by the KV cache's scales."""
    from tests.quantization.calibrated_models import random_windows
    from workbench.checkpoint.huggingface import HFCheckpoint
    from workbench.quantization.attention_inputs import CollectOptions, collect_attention_inputs
    from workbench.quantization.kv_error import KVStudy
    from workbench.quantization.ranges import ActivationRanges

    source, folder = HFCheckpoint.open(random_model_dir()), tmp_path_factory.mktemp("attention")
    collect_attention_inputs(source, random_windows(2, seed=1), folder, CollectOptions("float32"))
    return KVStudy(source.config, folder, ActivationRanges.load(random_calibration))


@pytest.fixture(scope="session")
def demo_checkpoint(demo_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Path]:
    """``demo_checkpoint(recipe)``: the demo model converted by a recipe; one per recipe and session."""
    from workbench.quantization.convert import convert

    made: dict[str, Path] = {}

    def make(recipe: Recipe) -> Path:
        key = recipe.to_yaml()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
            convert(demo_model_dir, recipe, made[key])
        return made[key]

    return make
