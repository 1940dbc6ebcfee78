"""Files of torch.save: views of the mapped file, and what such a file may hold. Hostile ones: test_hostile_inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.checkpoint.torch_bin import TorchBinFile
from workbench.errors import CheckpointError


def _saved(path: Path, content: object) -> TorchBinFile:
    torch.save(content, path)
    return TorchBinFile(path)


def test_values_types_and_order(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(5).bfloat16(),
        "i": torch.arange(4),
        "h": torch.randn(2, 1, 2).half(),
        "e": torch.zeros(0, 3),
        "s": torch.tensor(7.5),
    }
    file = _saved(tmp_path / "t.bin", tensors)
    assert list(file.specs) == list(tensors)
    for name, tensor in tensors.items():
        assert file.specs[name].dtype == tensor.dtype
        assert file.specs[name].shape == tensor.shape
        assert torch.equal(file.tensor(name), tensor)
    assert file.bytes == (tmp_path / "t.bin").stat().st_size


def test_a_models_state_is_read(tmp_path: Path) -> None:
    """``state_dict()`` is an OrderedDict with metadata; parameters may be parameters, and share their storage."""
    linear = torch.nn.Linear(3, 2)
    file = _saved(tmp_path / "t.bin", linear.state_dict())
    assert torch.equal(file.tensor("weight"), linear.weight)
    parameters = {"a": linear.weight, "b": linear.weight, "t": linear.weight.detach().t()}
    file = _saved(tmp_path / "p.bin", parameters)
    assert type(file.tensor("a")) is torch.Tensor
    assert not file.tensor("a").requires_grad
    assert torch.equal(file.tensor("b"), linear.weight)
    assert torch.equal(file.tensor("t"), linear.weight.t())


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    _saved(tmp_path / "t.bin", {"t": torch.zeros(4)}).tensor("t").fill_(1)
    assert TorchBinFile(tmp_path / "t.bin").tensor("t").sum() == 0


def test_nothing_is_loaded(tmp_path: Path) -> None:
    """Opening a file and reading one of its tensors takes no memory of the others'."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("RssAnon is told by Linux alone")

    def anonymous_kib() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon:"))

    torch.save({name: torch.ones(1 << 24) for name in "ab"}, tmp_path / "t.bin")  # 64 MiB each
    before = anonymous_kib()
    file = TorchBinFile(tmp_path / "t.bin")
    assert float(file.tensor("a").sum()) == 1 << 24
    assert anonymous_kib() - before < 1 << 14


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"t\.bin is missing; fetch the file again"):
        TorchBinFile(tmp_path / "t.bin")


def test_a_tensor_of_too_many_dimensions(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'t' is sparse, quantized or of too many dimensions; get the model as"):
        _saved(tmp_path / "t.bin", {"t": torch.zeros([1] * 9)})


def test_a_name_of_a_thousand_letters(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="names a tensor by a str; allowed: texts of up to 500 letters"):
        _saved(tmp_path / "t.bin", {"t" * 1000: torch.zeros(1)})


def test_values_that_are_negated_when_read_are_read_so(tmp_path: Path) -> None:
    tensor = torch.arange(1.0, 5.0)
    file = _saved(tmp_path / "t.bin", {"a": torch._neg_view(tensor)})
    assert torch.equal(file.tensor("a"), -tensor)
    assert file.tensor("a").view(torch.uint8).numel() == 16  # its bytes can be viewed
