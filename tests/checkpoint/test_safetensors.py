"""Our writer and reader against each other and against the safetensors library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_reader import SafetensorsFile
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.errors import CheckpointError

WRITABLE = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
)


def spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def write_all(path: Path, tensors: dict[str, Tensor]) -> str:
    with SafetensorsWriter(path, {name: spec_of(tensor) for name, tensor in tensors.items()}) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor)
    return writer.checksum


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(
        st.lists(st.text(min_size=1, max_size=12).filter(lambda t: t != "__metadata__"), max_size=6, unique=True)
    )
    result = {}
    for name in names:
        dtype = draw(st.sampled_from(WRITABLE))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
        result[name] = raw.view(dtype).view(shape)
    return result


def same_bits(left: Tensor, right: Tensor) -> bool:
    as_bytes = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*as_bytes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=tensor_sets())
def test_round_trip(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    checksum = write_all(path, tensors)
    file = SafetensorsFile(path)
    assert set(file.places) == set(tensors)
    assert all(same_bits(file.tensor(name), tensor) for name, tensor in tensors.items())
    assert file.checksum() == checksum
    with safe_open(path, "pt") as library:
        assert set(library.keys()) == set(tensors)
        assert all(same_bits(library.get_tensor(name), tensor) for name, tensor in tensors.items())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=tensor_sets())
def test_the_librarys_files_are_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "t.safetensors"
    save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.places) == set(tensors)
    assert all(same_bits(file.tensor(name), tensor) for name, tensor in tensors.items())


def test_every_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.int8), "b": torch.zeros(5), "c": torch.zeros(1, dtype=torch.float16)}
    write_all(tmp_path / "t", tensors)
    for place in SafetensorsFile(tmp_path / "t").places.values():
        assert place.start % place.spec.dtype.itemsize == 0


def test_rows_in_pieces_give_the_same_file(tmp_path: Path) -> None:
    tensor, other = torch.randn(7, 3), torch.randn(2)
    whole = write_all(tmp_path / "whole", {"t": tensor, "o": other})
    with SafetensorsWriter(tmp_path / "pieces", {"t": spec_of(tensor), "o": spec_of(other)}) as writer:
        writer.write_rows("t", tensor[:2])
        writer.write("o", other)
        writer.write_rows("t", tensor[2:6])
        writer.write_rows("t", tensor[6:])
    assert writer.checksum == whole
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_neighbours_are_joined_without_a_copy(tmp_path: Path) -> None:
    gate, scale, up = torch.randn(2, 3), torch.ones(4, dtype=torch.int8), torch.randn(3, 3)
    write_all(tmp_path / "t", {"gate": gate, "scale": scale, "up": up})
    file = SafetensorsFile(tmp_path / "t")
    joined = file.stacked(["gate", "up"])
    assert torch.equal(joined, torch.cat([gate, up]))
    assert joined.data_ptr() == file.tensor("gate").data_ptr()
    assert torch.equal(file.stacked(["up", "gate"]), torch.cat([up, gate]))


def test_a_strided_tensor_is_written_in_order(tmp_path: Path) -> None:
    tensor = torch.randn(4, 6).t()
    write_all(tmp_path / "t", {"t": tensor})
    assert torch.equal(SafetensorsFile(tmp_path / "t").tensor("t"), tensor)


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    write_all(tmp_path / "t", {"t": torch.zeros(4)})
    SafetensorsFile(tmp_path / "t").tensor("t").fill_(1)
    assert SafetensorsFile(tmp_path / "t").tensor("t").sum() == 0


def test_the_checksum_sees_every_value(tmp_path: Path) -> None:
    before = write_all(tmp_path / "t", {"t": torch.zeros(4), "u": torch.zeros(4)})
    assert write_all(tmp_path / "t", {"t": torch.zeros(4), "u": torch.tensor([0.0, 0, 0, 1])}) != before
    assert write_all(tmp_path / "t", {"t": torch.zeros(4), "v": torch.zeros(4)}) != before


# ---- what the writer refuses


def _write(path: Path, *pieces: tuple[str, Tensor]) -> None:
    """Write scalars whole and everything else as rows."""
    with _writer(path) as writer:
        for name, tensor in pieces:
            (writer.write_rows if tensor.dim() else writer.write)(name, tensor)


def _writer(path: Path) -> SafetensorsWriter:
    return SafetensorsWriter(path / "t", {"t": TensorSpec(torch.float32, (2, 3)), "s": TensorSpec(torch.int8, ())})


def test_an_unplanned_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor 'x' was not planned"), _writer(tmp_path) as writer:
        writer.write("x", torch.zeros(1))


def test_a_tensor_twice(tmp_path: Path) -> None:
    scalar = torch.tensor(1, dtype=torch.int8)
    with pytest.raises(CheckpointError, match="tensor 's' is written twice"):
        _write(tmp_path, ("s", scalar), ("s", scalar))


@pytest.mark.parametrize("tensor", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float16)])
def test_another_shape_or_type(tmp_path: Path, tensor: Tensor) -> None:
    match = r"tensor 't' is F(32 \[3, 2\]|16 \[2, 3\]); allowed: F32 \[2, 3\]"
    with pytest.raises(CheckpointError, match=match), _writer(tmp_path) as writer:
        writer.write("t", tensor)


def test_too_many_rows(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor 't' gets more rows than planned"):
        _write(tmp_path, ("t", torch.zeros(1, 3)), ("t", torch.zeros(2, 3)))


def test_a_missing_tensor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="1 tensors were never written, the first 't'"):
        _write(tmp_path, ("s", torch.tensor(1, dtype=torch.int8)), ("t", torch.zeros(1, 3)))


def test_an_error_inside_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), _writer(tmp_path):
        raise RuntimeError("mine")


def test_a_type_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor 't' is torch\.complex64; allowed: torch\.float64"):
        SafetensorsWriter(tmp_path / "t", {"t": TensorSpec(torch.complex64, (1,))})


# ---- what the reader refuses


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "t.safetensors"
    write_all(path, {"t": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=r"t\.safetensors is (truncated|not a safetensors file).*again"):
        SafetensorsFile(path)


def test_a_file_cut_inside_its_header(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_all(path, {"t": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is truncated: it has 20 bytes; allowed: a header of"):
        SafetensorsFile(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="t is missing"):
        SafetensorsFile(tmp_path / "t")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"PK\x03\x04" * 1000)
    with pytest.raises(CheckpointError, match=r"is not a safetensors file \(4000 bytes\)"):
        SafetensorsFile(tmp_path / "t")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        json.dumps({"t": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}).encode(),
        json.dumps({"t": {"dtype": "F32", "shape": [1]}}).encode(),
    ],
)
def test_a_header_that_cannot_be_read(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="has a header that cannot be read"):
        SafetensorsFile(tmp_path / "t")


def test_values_that_are_not_aligned(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * ((-len(header)) % 4 + 1)
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.5, -2.0))
    assert SafetensorsFile(tmp_path / "t").tensor("t").tolist() == [1.5, -2.0]
