"""Files that were broken, or made to do harm: each ends ``convert`` in one clear sentence, with nothing written."""

from __future__ import annotations

import builtins
import os
import pickle
import posix
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.hostile import (
    DOWN_PROJ,
    HEAD,
    Q_PROJ,
    Calls,
    Hostile,
    poison,
    retyped,
    swap,
    transposed,
)
from workbench.cli.main import main

BOMB = 100_000
INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
Break = Callable[[Hostile], object]


def _entry(name: str, **changes: Any) -> Break:
    """Change one tensor's entry in the safetensors header."""
    return lambda it: it.edit_header(lambda header: header[name].update(changes))


def _offsets(name: str, edit: Callable[[int, int], list[int]]) -> Break:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = edit(*header[name]["data_offsets"])

    return lambda it: it.edit_header(change)


def _swap_offsets(header: dict[str, Any]) -> None:
    for field in ("data_offsets",):
        header[Q_PROJ][field], header[DOWN_PROJ][field] = header[DOWN_PROJ][field], header[Q_PROJ][field]


def _twice(it: Hostile) -> None:
    entry = b'"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}'
    it.raw_header(b"{" + entry + b"," + entry + b"}", bytes(32))


def _fifo(it: Hostile) -> None:
    it.config.unlink()
    os.mkfifo(it.config)


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(it: Hostile) -> None:
    (it.folder / "a.safetensors").symlink_to("a.safetensors")
    it.index({HEAD: "a.safetensors"})


def _split(it: Hostile, *, cut: bool) -> None:
    """Two shards with an index; the second is truncated."""
    shutil.copy(it.weights, it.folder / "b.safetensors")
    names = list(it.tensors())
    it.index({name: "model.safetensors" if i % 2 else "b.safetensors" for i, name in enumerate(names)})
    if cut:
        it.cut(it.folder / "b.safetensors", 0.6)


def _compressed(it: Hostile) -> None:
    it.archive({"archive/data.pkl": pickle.dumps({}, 2), "archive/version": b"3\n"}, zipfile.ZIP_DEFLATED)


def _lost_storage(it: Hostile) -> None:
    it.as_bin()
    with zipfile.ZipFile(it.bin) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    it.archive({name: content for name, content in entries.items() if not name.endswith("data/3")})


def _big_claim(it: Hostile) -> None:
    """A storage that claims far more values than the file has."""
    it.save_bin({"x": torch.zeros(300)})
    it.edit_pickle(lambda content: content.replace(b"M\x2c\x01", b"J\xff\xff\xff\x7f"))


def _small_claim(it: Hostile) -> None:
    """A storage that takes the values of its neighbour, too."""
    it.save_bin({"x": torch.zeros(300), "y": torch.zeros(300)})
    it.edit_pickle(lambda content: content.replace(b"M\x2c\x01", b"M\x2d\x01"))


def _module(it: Hostile) -> None:
    it.save_bin(torch.nn.Linear(2, 2))


def _stack_global(it: Hostile) -> None:
    it.pickled(pickle.dumps(Calls(posix.system, "touch pwned"), 4))


CASES: dict[str, tuple[Break, str]] = {
    # config.json
    "config that is not UTF-8": (lambda it: it.raw_config(b'{"a": "\xff"}'), "config.json cannot be read as JSON"),
    "config in UTF-16": (lambda it: it.raw_config("{}".encode("utf-16")), "config.json cannot be read as JSON"),
    "empty config": (lambda it: it.raw_config(b""), "config.json cannot be read as JSON"),
    "config cut in the middle": (lambda it: it.cut(it.config, 0.5), "config.json cannot be read as JSON"),
    "config that is a list": (lambda it: it.raw_config(b"[]"), "config.json holds a list; allowed: a JSON object"),
    "config of nested lists": (lambda it: it.raw_config(b"[" * BOMB), "nested too deeply"),
    "config of nested objects": (lambda it: it.raw_config(b'{"a":' * BOMB), "nested too deeply"),
    "config with a name twice": (
        lambda it: it.raw_config(b'{"hidden_size": 16, "hidden_size": 32}'),
        "'hidden_size' stands twice",
    ),
    "config with a number of 5000 digits": (
        lambda it: it.raw_config(b'{"hidden_size": ' + b"9" * 5000 + b"}"),
        "config.json cannot be read as JSON",
    ),
    "size beyond every machine": (lambda it: it.edit_config(hidden_size=10**400), "hidden_size is a whole number of"),
    "number beyond floats": (lambda it: it.edit_config(rms_norm_eps=10**400), "rms_norm_eps is a whole number of"),
    "true for a size": (lambda it: it.edit_config(num_hidden_layers=True), "num_hidden_layers is True; allowed: a w"),
    "negative size": (lambda it: it.edit_config(vocab_size=-31), "vocab_size is -31; allowed: a whole number from 1"),
    "size with a fraction": (lambda it: it.edit_config(hidden_size=16.0), "hidden_size is 16.0; allowed: a whole"),
    "a billion layers": (lambda it: it.edit_config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; allow"),
    "two billion positions": (
        lambda it: it.edit_config(max_position_embeddings=2**31 - 1),
        "max_position_embeddings is 2147483647; allowed: a whole number from 1 to 10000000",
    ),
    "more layers than files hold": (lambda it: it.edit_config(num_hidden_layers=9), "tensor 'model.layers.1.input_lay"),
    "NaN in the config": (lambda it: it.edit_config(rms_norm_eps=float("nan")), "rms_norm_eps is nan; allowed: a num"),
    "infinity in the config": (lambda it: it.edit_config(rope_theta=float("inf")), "rope_theta is inf; allowed"),
    "text for a size": (lambda it: it.edit_config(num_attention_heads="2"), "num_attention_heads is '2'"),
    "heads that do not divide": (lambda it: it.edit_config(num_key_value_heads=7), "num_key_value_heads is 7; allowed"),
    "architecture that is an object": (lambda it: it.edit_config(architectures=[{"a": []}]), "is unknown; allowed: In"),
    "architecture with a lone surrogate": (
        lambda it: it.raw_config(b'{"architectures": ["\\ud800\\n"]}'),
        "architecture '\\ud800\\n' is unknown",
    ),
    "eos ids in a list of lists": (
        lambda it: it.edit_config(eos_token_id=[[2]]),
        "eos_token_id is [[2]]; allowed: a w",
    ),
    "config that is a folder": (lambda it: _folder_instead(it.config), "config.json is missing"),
    "config that is a pipe": (_fifo, "config.json is missing"),
    "generation config that is not JSON": (
        lambda it: (it.folder / "generation_config.json").write_text("eos: 2"),
        "generation_config.json cannot be read as JSON",
    ),
    "generation config with a text for an id": (
        lambda it: (it.folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}'),
        "generation_config.json: eos_token_id is '</s>'; allowed: a whole number from 0",
    ),
    # model.safetensors
    "empty weights": (lambda it: it.cut(it.weights, 0), "is not a safetensors file (0 bytes)"),
    "weights of seven bytes": (lambda it: it.weights.write_bytes(bytes(7)), "is not a safetensors file (7 bytes)"),
    "weights cut inside the header": (lambda it: it.weights.write_bytes(it.weights.read_bytes()[:99]), "is truncated"),
    "weights cut inside a tensor": (lambda it: it.cut(it.weights, 0.7), "is truncated: it has"),
    "weights that lack one byte": (lambda it: it.weights.write_bytes(it.weights.read_bytes()[:-1]), "is truncated"),
    "weights with one byte more": (lambda it: it.weights.write_bytes(it.weights.read_bytes() + b"x"), "is too long"),
    "weights that are a folder": (lambda it: _folder_instead(it.weights), "has no weights; allowed: model.safetensors"),
    "header of length 0": (lambda it: it.raw_header(b"{}", length=0), "is not a safetensors file"),
    "header of length 2^63": (lambda it: it.raw_header(b"{}", length=2**63), "is not a safetensors file"),
    "header longer than the file": (lambda it: it.raw_header(b"{}", length=5000), "is truncated"),
    "header that is not JSON": (lambda it: it.raw_header(b"{{}"), "has a header that cannot be read"),
    "header that is not UTF-8": (lambda it: it.raw_header(b'{"\xff": 1}'), "has a header that cannot be read"),
    "header that is a list": (lambda it: it.raw_header(b"[]"), "cannot be read (it holds a list)"),
    "header of nested lists": (lambda it: it.raw_header(b"[" * BOMB), "cannot be read (nested too deeply)"),
    "header with a tensor twice": (_twice, "cannot be read ('a' stands twice)"),
    "header with a name of a million letters": (
        lambda it: it.raw_header(b'{"' + b"a" * 10**6 + b'": {}}'),
        "name has 1,000,000 letters",
    ),
    "header with a number for a tensor": (lambda it: it.raw_header(b'{"a": 3}'), "'a' lacks dtype, shape or data_off"),
    "negative shape": (_entry(Q_PROJ, shape=[-16, 16]), "something else than whole numbers from 0"),
    "two negative sizes": (_entry(Q_PROJ, shape=[-16, -16]), "something else than whole numbers from 0"),
    "true in a shape": (_entry("model.norm.weight", shape=[16, True]), "something else than whole numbers from 0"),
    "fraction in a shape": (_entry(Q_PROJ, shape=[16.0, 16]), "something else than whole numbers from 0"),
    "shape of a million ones": (_entry(Q_PROJ, shape=[1] * 10**6), "no list of up to 8 numbers"),
    "shape that overflows": (_entry(Q_PROJ, shape=[2**62, 2**62]), "has offsets"),
    "element type that is unknown": (_entry(Q_PROJ, dtype="F4"), "has dtype 'F4', not one of F64"),
    "element type that is a list": (_entry(Q_PROJ, dtype=["F32"]), "has dtype"),
    "element type of another size": (_entry(Q_PROJ, dtype="F16"), "has offsets"),
    "offsets the wrong way round": (_offsets(Q_PROJ, lambda first, last: [last, first]), "has offsets"),
    "offsets beyond the file": (_offsets(HEAD, lambda first, last: [first + 10**12, last + 10**12]), "leaves a hole"),
    "negative offsets": (_offsets(HEAD, lambda first, last: [first - last, 0]), "something else than whole numbers"),
    "offsets that overlap": (_offsets(HEAD, lambda first, last: [first - 64, last - 64]), "overlaps the tensor before"),
    "offsets with a hole": (_offsets(HEAD, lambda first, last: [first + 64, last + 64]), "leaves a hole before it"),
    "three offsets": (_offsets(HEAD, lambda first, last: [first, last, last]), "has offsets"),
    "offsets of two tensors swapped": (lambda it: it.edit_header(_swap_offsets), "has offsets"),
    "tensors of two names swapped": (
        lambda it: it.edit_tensors(lambda tensors: swap(tensors, Q_PROJ, DOWN_PROJ)),
        "belong to different models",
    ),
    "transposed matrix": (lambda it: it.edit_tensors(transposed), "is [24, 16]; allowed: [16, 24] by config.json"),
    "integers for weights": (lambda it: it.edit_tensors(retyped(torch.int8)), "is torch.int8; allowed: a float type"),
    "missing tensor": (lambda it: it.edit_tensors(lambda tensors: tensors.pop(Q_PROJ)), f"tensor '{Q_PROJ}' is missi"),
    "NaN in a weight": (lambda it: it.edit_tensors(poison(float("nan"))), "holds 1 values that are NaN or infinite"),
    "infinity in a weight": (lambda it: it.edit_tensors(poison(float("-inf"))), "values that are NaN or infinite"),
    "torch's archive named safetensors": (
        lambda it: (it.as_bin(), it.bin.rename(it.weights)),
        "is not a safetensors file",
    ),
    # indexes
    "index that is not JSON": (lambda it: (it.folder / INDEX).write_text("{"), "cannot be read as JSON"),
    "index of nested objects": (lambda it: (it.folder / INDEX).write_text('{"a":' * BOMB), "nested too deeply"),
    "index without a map": (lambda it: it.index(None), "weight_map is None; allowed: an object"),
    "index with a list for its map": (lambda it: it.index(["model.safetensors"]), "weight_map is ['model.safetensors'"),
    "index that climbs out": (
        lambda it: it.index({HEAD: "../secret.safetensors"}),
        "allowed: files of the same folder",
    ),
    "index with an absolute path": (lambda it: it.index({HEAD: "/etc/passwd"}), "names the file '/etc/passwd'; allowe"),
    "index into a folder below": (lambda it: it.index({HEAD: "a/b.safetensors"}), "allowed: files of the same folder"),
    "index with an empty name": (lambda it: it.index({HEAD: ""}), "names the file ''; allowed: files of the same fold"),
    "index with a dot": (lambda it: it.index({HEAD: ".."}), "names the file '..'; allowed: files of the same folder"),
    "index with a line break": (
        lambda it: it.index({HEAD: "a\nb"}),
        "names the file 'a\\nb'; allowed: files of the sa",
    ),
    "index with a zero byte": (lambda it: it.index({HEAD: "a\0b"}), "names the file 'a\\x00b'; allowed: files of the"),
    "index with a list for a file": (lambda it: it.index({HEAD: ["model.safetensors"]}), "allowed: files of the same"),
    "index that names a missing shard": (lambda it: it.index({HEAD: "b.safetensors"}), "b.safetensors is missing"),
    "index that names a link to itself": (_loop, "a.safetensors is missing"),
    "index that names a missing tensor": (lambda it: it.index({"x": "model.safetensors"}), "tensor 'x' is missing"),
    "index that lacks a tensor": (lambda it: it.index({HEAD: "model.safetensors"}), f"{INDEX}: tensor 'model.embed"),
    "index with a truncated shard": (lambda it: _split(it, cut=True), "b.safetensors is truncated"),
    "bin index that climbs out": (
        lambda it: (it.weights.unlink(), it.index({HEAD: "../x.bin"}, BIN_INDEX)),
        "names the file '../x.bin'; allowed: files of the same folder",
    ),
    # pytorch_model.bin
    "pickle that calls the system": (
        lambda it: it.save_bin({"a": torch.zeros(2), "b": Calls(posix.system, "touch pwned")}),
        "asks for 'posix.system', which could run anything; nothing of it was run",
    ),
    "pickle that evaluates": (
        lambda it: it.save_bin({"a": Calls(builtins.eval, "open('pwned', 'w')")}),
        "asks for '__builtin__.eval'",
    ),
    "pickle that names by its stack": (_stack_global, "asks for 'STACK_GLOBAL'"),
    "pickle that fills the memory": (lambda it: it.save_bin({"a": Calls(bytearray, 10**15)}), "builtin__.bytearray'"),
    "pickle of a whole module": (_module, "asks for 'torch.nn.modules.linear.Linear'"),
    "pickle of a list": (
        lambda it: it.save_bin([torch.zeros(2)]),
        "pytorch_model.bin holds a list; allowed: tensors b",
    ),
    "pickle of numbers": (lambda it: it.save_bin({"a": 3}), "'a' is a int; allowed: a tensor"),
    "pickle of a state within a state": (
        lambda it: it.save_bin({"model": {"a": torch.zeros(2)}}),
        "'model' is a dict; allowed: a tensor",
    ),
    "pickle with numbers for names": (lambda it: it.save_bin({7: torch.zeros(2)}), "names a tensor by a int"),
    "pickle of nested lists": (
        lambda it: it.pickled(b"\x80\x02" + b"]" * BOMB + b"a" * (BOMB - 1) + b"."),
        "holds a l",
    ),
    "pickle that is noise": (lambda it: it.pickled(bytes(range(256))), "pytorch_model.bin cannot be read"),
    "pickle that ends early": (
        lambda it: (it.as_bin(), it.edit_pickle(lambda content: content[:-40])),
        "pytorch_model.bin cannot be read",
    ),
    "sparse tensor": (lambda it: it.save_bin({"a": torch.eye(3).to_sparse()}), "asks for 'torch._utils._rebuild_spar"),
    "bin of before torch 1.6": (
        lambda it: it.as_bin(_use_new_zipfile_serialization=False),
        "from before torch 1.6, which cannot be mapped",
    ),
    "bin that is empty": (lambda it: (it.as_bin(), it.cut(it.bin, 0)), "is no archive of torch.save"),
    "bin that is a safetensors file": (lambda it: it.weights.rename(it.bin), "is no archive of torch.save"),
    "bin cut in the middle": (lambda it: (it.as_bin(), it.cut(it.bin, 0.5)), "pytorch_model.bin cannot be read"),
    "bin that lacks its last bytes": (lambda it: (it.as_bin(), it.cut(it.bin, 0.999)), "bin cannot be read"),
    "bin without a pickle": (
        lambda it: it.archive({"a/b": b"c"}),
        "is no archive of torch.save; allowed: one data.pkl",
    ),
    "bin with two pickles": (
        lambda it: it.archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}),
        "allowed: one data.pkl in it",
    ),
    "bin that is compressed": (_compressed, "is compressed; allowed: values as torch.save writes them"),
    "bin that lacks a storage": (_lost_storage, "pytorch_model.bin cannot be read"),
    "bin whose storage claims too much": (_big_claim, "pytorch_model.bin cannot be read"),
    "bin whose storage claims its neighbour": (_small_claim, "its values and its list of tensors do not fit"),
    "bin with a transposed matrix": (lambda it: it.as_bin(transposed), "is [24, 16]; allowed: [16, 24] by config.json"),
    "bin with integers for weights": (lambda it: it.as_bin(retyped(torch.int32)), "is torch.int32; allowed: a float"),
    "bin with NaN in a weight": (lambda it: it.as_bin(poison(float("nan"))), "holds 1 values that are NaN or infinite"),
    "bin with a missing tensor": (lambda it: it.as_bin(lambda t: t.pop(HEAD)), f"pytorch_model.bin: tensor '{HEAD}'"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing is wrong with."""
    return Hostile.write(tmp_path_factory.mktemp("whole") / "model").folder


def test_there_are_forty() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_written(
    case: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, expected = CASES[case]
    monkeypatch.chdir(tmp_path)
    hostile = Hostile(Path(shutil.copytree(whole, tmp_path / "model")))
    break_it(hostile)
    before = sorted(tmp_path.rglob("*"))
    words = ["convert", "--model_dir", str(hostile.folder), "--weights", "int8", "-o", str(tmp_path / "out")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("workbench: error: ")
    assert told.count("\n") == 1
    assert len(told) < 700
    assert expected in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_safetensors_file_truncated_at_any_byte(whole: Path, tmp_path: Path) -> None:
    _refused_at_every_cut((whole / "model.safetensors").read_bytes(), tmp_path / "model.safetensors")


def test_a_bin_file_truncated_at_any_byte(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "model")
    hostile = Hostile(tmp_path / "model")
    hostile.save_bin({"a": torch.arange(6.0)})
    _refused_at_every_cut(hostile.bin.read_bytes(), tmp_path / "pytorch_model.bin")


def _refused_at_every_cut(content: bytes, path: Path) -> None:
    from workbench.checkpoint.safetensors_reader import SafetensorsFile
    from workbench.checkpoint.torch_bin import TorchBinFile
    from workbench.errors import CheckpointError

    read = TorchBinFile if path.suffix == ".bin" else SafetensorsFile
    header_end = 8 + struct.unpack("<Q", content[:8])[0] if read is SafetensorsFile else len(content)
    # Every byte of what lists the tensors; of the values, every seventh.
    for length in [*range(header_end), *range(header_end, len(content), 7)]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read(path)
