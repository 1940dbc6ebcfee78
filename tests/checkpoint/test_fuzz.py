"""The readers under hypothesis for 20 seconds: whatever a file holds, nothing but a WorkbenchError comes out.

Each reader gets its seconds in runs of consecutive seeds, so that a failure comes again on another machine.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.checkpoint.hostile import Hostile
from workbench.checkpoint.hf_config import read_model_config
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.torch_bin import TorchBinFile
from workbench.errors import WorkbenchError

SECONDS = 5.0
EXAMPLES = 50

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.booleans(),
)
values = st.recursive(
    st.none() | numbers | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile.write(tmp_path / "model")


def fuzz(strategy: st.SearchStrategy[Any], read: Callable[[Any], object]) -> None:
    """Give ``read`` examples for a while; a WorkbenchError is its right, anything else a failure."""

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(example=strategy)
    def run(example: Any) -> None:
        try:
            read(example)
        except WorkbenchError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the message itself is under test
            assert len(str(error)) < 1500  # noqa: PT017

    start, number, tried = time.monotonic(), 0, 0
    while time.monotonic() - start < SECONDS:
        seed(number)(run)()
        number, tried = number + 1, tried + EXAMPLES
    assert tried >= EXAMPLES


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with some of its bytes changed, cut out or put in."""
    place = st.integers(0, len(content))
    edits = st.lists(st.tuples(place, st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        result = content
        for start, removed, added in edits:
            result = result[:start] + added + result[start + removed :]
        return result

    return edits.map(apply)


def test_safetensors(hostile: Hostile) -> None:
    """Bytes changed anywhere, and headers that are JSON with everything in the wrong place."""
    content = hostile.weights.read_bytes()
    sizes = st.lists(numbers, max_size=3) | values
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "I8", "F4"]) | values,
            "shape": sizes,
            "data_offsets": sizes,
        },
    )
    headers = st.dictionaries(st.text(max_size=4), entry | values, max_size=4)
    texts = headers.map(lambda header: json.dumps(header).encode())
    framed = st.tuples(texts, st.binary(max_size=64)).map(
        lambda pair: len(pair[0]).to_bytes(8, "little") + b"".join(pair)
    )

    def read(example: bytes) -> None:
        hostile.weights.write_bytes(example)
        file = SafetensorsFile(hostile.weights)
        for name, spec in file.specs.items():
            assert file.tensor(name).shape == spec.shape

    fuzz(mutated(content) | framed | st.binary(max_size=80), read)


def test_index(hostile: Hostile) -> None:
    names = list(hostile.tensors())
    shards = st.sampled_from(
        ["model.safetensors", "../model.safetensors", "/dev/zero", ".", "config.json", "\0", "\ud800"]
    )
    maps = st.dictionaries(st.sampled_from(names) | st.text(max_size=4), shards | values, max_size=6)

    def read(example: Any) -> None:
        (hostile.folder / "model.safetensors.index.json").write_text(json.dumps(example))
        HFCheckpoint.open(hostile.folder).check()

    fuzz(st.fixed_dictionaries({"weight_map": maps | values}, optional={"metadata": values}) | values, read)


def test_config(hostile: Hostile) -> None:
    """Fields of a whole config replaced by anything, and its bytes changed."""
    whole = json.loads(hostile.config.read_text())
    fields = [*whole, "head_dim", "rotary", "rope_scaling", "rope_parameters", "rope_theta", "qkv_bias", "mlp_bias"]
    rope = st.fixed_dictionaries(
        {},
        optional={"type": st.sampled_from(["dynamic", "linear", "yarn"]) | values, "factor": numbers, "base": numbers},
    )
    architecture = st.sampled_from(["InternLM2ForCausalLM", "InternLM3ForCausalLM", "LlamaForCausalLM"]).map(
        lambda x: [x]
    )
    changes = st.dictionaries(st.sampled_from(fields), values | rope | architecture, max_size=4)
    edited = changes.map(lambda change: json.dumps(whole | change).encode())

    def read(example: bytes) -> None:
        hostile.raw_config(example)
        config = read_model_config(hostile.folder)
        assert math.isfinite(config.rope_theta)
        HFCheckpoint.open(hostile.folder).check()

    fuzz(edited | mutated(hostile.config.read_bytes()) | st.binary(max_size=40), read)


def test_bin(hostile: Hostile, tmp_path: Path) -> None:
    """Bytes of an archive of torch.save changed: its directory, its pickle, its values."""
    hostile.save_bin({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
    content = hostile.bin.read_bytes()
    pickled: list[bytes] = []
    hostile.edit_pickle(lambda pickle: (pickled.append(pickle), pickle)[1])
    shutil.copy(hostile.bin, tmp_path / "whole.bin")

    def read(example: tuple[bool, bytes]) -> None:
        of_pickle, mutation = example
        if of_pickle:
            shutil.copy(tmp_path / "whole.bin", hostile.bin)
            hostile.edit_pickle(lambda _: mutation)
        else:
            hostile.bin.write_bytes(mutation)
        file = TorchBinFile(hostile.bin)
        for name, spec in file.specs.items():
            assert file.tensor(name).shape == spec.shape
            assert file.tensor(name).sum().shape == ()

    fuzz(st.tuples(st.just(False), mutated(content)) | st.tuples(st.just(True), mutated(pickled[0])), read)
