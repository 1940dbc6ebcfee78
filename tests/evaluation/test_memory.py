"""What a model takes is said before it is opened."""

from __future__ import annotations

import pytest
import torch

from workbench.checkpoint import hf_names
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import LimitError
from workbench.evaluation import memory


def test_sizes(random_model_dir):
    source = HFCheckpoint.open(random_model_dir())
    stored = [source.tensor(name).numel() for name in hf_names.tensor_shapes(source.config)]
    assert memory.parameters(source.config) == sum(stored)
    assert memory.largest_tensor(source.config) == max(stored)
    assert memory.free_bytes("cpu") > 0


def test_what_torch_keeps_of_a_gpu_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 15)
    assert memory.free_bytes("cuda") == 8


def test_the_limits_of_control_groups_count(monkeypatch):
    monkeypatch.setattr(memory.available_memory, "available_bytes", lambda: 7)
    assert memory.free_bytes("cpu") == 7
    monkeypatch.setattr(memory.available_memory, "available_bytes", lambda: None)
    assert memory.free_bytes("cpu") == float("inf")


def test_a_gpu_s_blocks_go_back_once_python_s_cycles_are_gone(monkeypatch):
    done = []
    monkeypatch.setattr(memory.available_memory, "give_back", lambda: done.append("cycles"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("blocks"))
    memory.give_back()
    assert done == ["cycles", "blocks"]


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 20.1e9)
    memory.require_memory("a model", 20e9, "cpu")
    with pytest.raises(LimitError, match=r"a model needs 56 GB of memory on cpu; allowed: 20 GB, which is free"):
        memory.require_memory("a model", 56e9, "cpu")


@pytest.mark.parametrize(("size_bytes", "text"), [(1.5e9, "1.5 GB"), (56e9, "56 GB"), (123.4e9, "123 GB")])
def test_sizes_in_words(size_bytes, text):
    assert memory.gigabytes(size_bytes) == text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which",
            "the GPU's memory is used up: 20.00 GiB more were wanted; run fewer or shorter prompts at once, end what",
        ),
        ("CUDA out of memory.", "the GPU's memory is used up; run fewer or shorter prompts at once, end what else"),
    ],
)
def test_a_gpu_without_memory_is_a_mistake_that_can_be_mended(said, told):
    found = memory.out_of_gpu_memory(torch.cuda.OutOfMemoryError(said))
    assert isinstance(found, LimitError)
    assert str(found).startswith(told)
    assert memory.out_of_gpu_memory(RuntimeError(said)) is None
