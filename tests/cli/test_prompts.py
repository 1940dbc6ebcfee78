"""Prompts of ``run`` from a file."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.random_model import SMALL
from workbench.cli.command import UsageError
from workbench.cli.prompts import encoded, given_prompts


def args_of(path: Path, **flags: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"input_file": path, "input_text": None, "chat": False, "system_text": None} | flags)


class Letters:
    """A tokenizer whose ids are the places of letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 5 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(number - 5 + ord("a")) for number in ids)


def test_a_text_in_every_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.TXT"
    path.write_bytes("\ufeffone, two\r\n  three é\r\n\r\n\n".encode())
    assert given_prompts(args_of(path)).texts == ("one, two", "  three é")


def test_a_line_keeps_its_blanks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one \n\tthe answer is  \n \n")
    assert given_prompts(args_of(path)).texts == ("one ", "\tthe answer is  ")


def test_ids_in_every_line(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text('1, 2,3\n"4",,\n5,6\n')
    given = given_prompts(args_of(path))
    assert given.rows == ((1, 2, 3), (4,), (5, 6))
    assert not given.padded


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_a_table_of_ids_loses_its_pads_at_both_ends(tmp_path: Path, dtype: Any) -> None:
    pad = -1 if np.issubdtype(dtype, np.signedinteger) else 2
    config, path = dataclasses.replace(SMALL, pad_token_id=2), tmp_path / "ids.npy"
    np.save(path, np.array([[2, 2, 5, 2, 6], [7, 8, 2, pad, pad], [9, 9, 9, 9, 9]], dtype=dtype))
    prompts = encoded(given_prompts(args_of(path)), args_of(path), Letters(), config)  # type: ignore[arg-type]
    # A pad's id inside a row is no pad.
    assert prompts.ids == [[5, 2, 6], [7, 8], [9, 9, 9, 9, 9]]
    assert prompts.texts[1:] == ["cd", "eeeee"]


def test_without_a_pad_id_the_first_end_is_the_pad(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[5, 6, 3, 4], [7, 4, 3, 3]]))
    config = dataclasses.replace(SMALL, eos_token_ids=(3, 4))
    args = args_of(tmp_path / "ids.npy")
    prompts = encoded(given_prompts(args), args, Letters(), config)  # type: ignore[arg-type]
    assert prompts.ids == [[5, 6, 3, 4], [7, 4]]


def test_rows_of_a_csv_file_have_no_pads(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("2,5,2\n")
    prompts = encoded(given_prompts(args_of(path)), args_of(path), Letters(), SMALL)  # type: ignore[arg-type]
    assert prompts.ids == [[2, 5, 2]]


def test_one_row_is_one_prompt(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(5, 9))
    assert given_prompts(args_of(tmp_path / "ids.npy")).rows == ((5, 6, 7, 8),)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "a.txt holds no prompts; give it at least one"),
        ("a.txt", b"\n\n", "a.txt holds no prompts"),
        ("a.txt", b"one\n\nthree\n", "a.txt: line 2 is empty; allowed: a prompt in every line; remove it, or fill it"),
        ("a.txt", b"one\n\xff\n", "a.txt is no text in UTF-8 (byte 4); save it as UTF-8"),
        ("a.csv", b"1,2\nThe cat\n", "a.csv: line 2 holds 'The cat'; allowed: token ids, whole numbers from 0, with"),
        ("a.csv", b"1,2.0\n", "a.csv: line 1 holds '2.0'; allowed: token ids"),
        ("a.csv", b"1,-1\n", "a.csv: line 1 holds '-1'; allowed: token ids, whole numbers from 0"),
        ("a.csv", b"1,,2\n", "a.csv: line 1 holds ''; allowed: token ids"),
        ("a.csv", b",,\n1\n", "a.csv: line 1 holds no ids; remove it, or fill it"),
        ("a.csv", "1,٢\n".encode(), "a.csv: line 1 holds '٢'"),
        ("a.csv", b"1," + b"9" * 5000, "a.csv: line 1 holds '9999999999999999999999999999999999999999'; allowed"),
        ("a.npy", b"PK\x03\x04 and no archive", "a.npy cannot be read as a NumPy table of numbers; save one with"),
        ("a.npy", b"\x93NUMPY\x01\x00\x04\x00((((", "a.npy cannot be read as a NumPy table of numbers"),
        ("a.npy", b"\x93NUMPY\x01\x00\x0b\x00  {'descr'\n", "a.npy cannot be read as a NumPy table of numbers"),
        ("a.npy", b"1,2\n", "a.npy cannot be read as a NumPy table of numbers; save one with np.save; fill shorter"),
        ("a.npy", b"", "a.npy cannot be read as a NumPy table of numbers"),
        ("a.json", b"[]", "a.json; allowed: a file that ends in .txt, .csv, .npy"),
    ],
)
def test_a_file_that_holds_no_prompts(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as raised:
        given_prompts(args_of(tmp_path / name))
    assert told in str(raised.value)


def test_a_quote_that_nothing_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('1\n"2' + "9" * 200000)
    with pytest.raises(UsageError) as raised:
        given_prompts(args_of(path))
    assert str(raised.value) == (
        f"{path}: line 2 is no line of a CSV file (field larger than field limit (131072)); allowed: token ids, whole "
        "numbers from 0, with commas between them; remove it, or its quotes"
    )


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            np.ones((2, 3)),
            "holds float64 [2, 3]; allowed: token ids: whole numbers [prompts, longest], or [tokens] for",
        ),
        (np.ones((1, 2, 3), dtype=np.int64), "holds int64 [1, 2, 3]; allowed: token ids"),
        (np.int64(4), "holds int64 []; allowed: token ids"),
        (np.array([[1, -7]]), "holds -7; allowed: ids from 0, and -1 as a pad"),
        (np.ones((0, 3), dtype=np.int64), "holds no prompts"),
        (np.array([[1], [2, 3]], dtype=object), "fill shorter rows with -1, or write a .csv file"),
    ],
)
def test_a_table_that_holds_no_ids(tmp_path: Path, table: Any, told: str) -> None:
    np.save(tmp_path / "a.npy", table, allow_pickle=True)
    with pytest.raises(UsageError) as raised:
        given_prompts(args_of(tmp_path / "a.npy"))
    assert told in str(raised.value)


def test_several_arrays_in_one_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    path = (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UsageError, match=r"holds several arrays"):
        given_prompts(args_of(path))


def test_a_row_of_pads_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[5, -1], [2, -1]]))
    args = args_of(tmp_path / "a.npy")
    with pytest.raises(UsageError, match=r"a\.npy: row 2 holds pads alone; give each row some ids"):
        encoded(given_prompts(args), args, Letters(), SMALL)  # type: ignore[arg-type]


def test_flags_that_contradict_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(UsageError, match=r"--chat with the token ids of .*give a \.txt file, or leave --chat out"):
        given_prompts(args_of(tmp_path / "a.csv", chat=True))
    with pytest.raises(UsageError, match=r"none\.csv does not exist; give the path of a file with prompts"):
        given_prompts(args_of(tmp_path / "none.csv"))
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UsageError, match=r"b\.csv is a folder"):
        given_prompts(args_of(tmp_path / "b.csv"))
