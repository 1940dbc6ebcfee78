"""Which files are read: safetensors before .bin, indexes and shards, links, and what is in files beside the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.bin_folder import to_bin
from tests.checkpoint.breakable import Breakable
from workbench.checkpoint import hf_names
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.weight_files import BIN_FILE, BIN_INDEX_FILE, SINGLE_FILE, find_weights
from workbench.errors import CheckpointError


@pytest.mark.parametrize("shard_bytes", [None, 50_000])
@pytest.mark.parametrize("name", ["internlm", "internlm2"])
def test_bin_files_give_the_same_weights(
    random_model_dir: Callable[..., Path], tmp_path: Path, name: str, shard_bytes: int | None
) -> None:
    folder = random_model_dir(format=name, kv_heads=2, dtype="bfloat16", shard_bytes=shard_bytes)
    ours, theirs = HFCheckpoint.open(folder), HFCheckpoint.open(to_bin(Path(shutil.copytree(folder, tmp_path / "bin"))))
    theirs.check()
    assert theirs.listing.name == (BIN_FILE if shard_bytes is None else BIN_INDEX_FILE)
    assert len(set(theirs.files.values())) == len(set(ours.files.values()))
    for tensor in hf_names.tensor_shapes(ours.config):
        assert torch.equal(ours.tensor(tensor), theirs.tensor(tensor))


def test_safetensors_come_before_bin(model: Breakable) -> None:
    (model.folder / BIN_FILE).write_bytes(b"never looked at")
    (model.folder / BIN_INDEX_FILE).write_text("never looked at")
    assert find_weights(model.folder).listing.name == SINGLE_FILE


def test_an_index_that_names_a_missing_bin(model: Breakable) -> None:
    (model.folder / SINGLE_FILE).unlink()
    (model.folder / BIN_INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(CheckpointError, match=r"pytorch_model-00001-of-00002\.bin is missing"):
        find_weights(model.folder)


def test_links_are_followed(model: Breakable, tmp_path: Path) -> None:
    """Hugging Face's cache is a folder of links to files that lie elsewhere."""
    (tmp_path / "blobs").mkdir()
    (model.folder / SINGLE_FILE).rename(tmp_path / "blobs" / "1f")
    (model.folder / SINGLE_FILE).symlink_to(tmp_path / "blobs" / "1f")
    HFCheckpoint.open(model.folder).check()


def test_tensors_that_the_model_does_not_have_are_listed(model: Breakable) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "value_head.weight": torch.ones(3),
        "model.layers.9.mlp.up_proj.weight": torch.ones(1, dtype=torch.int64),
    }
    assert HFCheckpoint.open(model.folder).ignored == ()
    model.edit_tensors(lambda tensors: tensors.update(extra))
    source = HFCheckpoint.open(model.folder)
    source.check()
    assert sorted(source.ignored) == ["model.layers.9.mlp.up_proj.weight", "value_head.weight"]


def test_tensors_of_several_types(model: Breakable) -> None:
    """A file may hold float64, float32, float16 and bfloat16 beside one another; everything is read as asked for."""
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        for i, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].to(dtypes[i % 4])

    model.edit_tensors(retype)
    source = HFCheckpoint.open(model.folder)
    assert {source.spec(name).dtype for name in hf_names.tensor_shapes(source.config)} == set(dtypes)
    assert source.weights(torch.float32).layers[1].qkv.weight.dtype == torch.float32
