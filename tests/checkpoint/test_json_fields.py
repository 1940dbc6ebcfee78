"""Every field's error names the file, the field, what was found and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.checkpoint import json_fields
from workbench.checkpoint.json_fields import JsonFields
from workbench.errors import CheckpointError

Read = Callable[[JsonFields], Any]


def _fields(**content: Any) -> JsonFields:
    return JsonFields(Path("f.json"), content)


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        (0, lambda f: f.integer("x"), "f.json: x is 0; allowed: a whole number from 1"),
        ("3", lambda f: f.integer("x"), "x is '3'; allowed: a whole number from 1"),
        (True, lambda f: f.integer("x"), "x is True"),
        (None, lambda f: f.integer("x"), "x is None"),
        (2**31, lambda f: f.integer("x"), "x is 2147483648; allowed: a whole number from 1 to 2147483647"),
        (7, lambda f: f.integer("x", maximum=6), "x is 7; allowed: a whole number from 1 to 6"),
        (10**100, lambda f: f.integer("x"), "x is a whole number of about 100 digits; allowed: a whole number from 1"),
        ([2**31], lambda f: f.integers("x"), "x is [2147483648]; allowed: a whole number from 0, or a list of them"),
        (10**400, lambda f: f.positive("x"), "x is a whole number of about 400 digits; allowed: a number above 0"),
        (-1, lambda f: f.optional_id("x", 5), "x is -1; allowed: a whole number from 0"),
        (5, lambda f: f.optional_id("x", 5), "x is 5; allowed: an id of the vocabulary, 0 to 4, or nothing"),
        ([4, 5], lambda f: f.ids("x", 5), "x is [4, 5]; allowed: ids of the vocabulary, 0 to 4"),
        ([2, "a"], lambda f: f.integers("x"), "allowed: a whole number from 0, or a list of them"),
        (-1.5, lambda f: f.positive("x"), "x is -1.5; allowed: a number above 0"),
        (float("inf"), lambda f: f.positive("x"), "x is inf"),
        (True, lambda f: f.positive("x"), "x is True"),
        ("yes", lambda f: f.boolean("x"), "x is 'yes'; allowed: true or false"),
        ("relu", lambda f: f.text("x", allowed=("silu",)), "x is 'relu'; allowed: 'silu'"),
        (7, lambda f: f.text("x"), "x is 7; allowed: a text"),
        ([], lambda f: f.texts("x"), "x is []; allowed: a list of texts"),
        ([], lambda f: f.section("x"), "x is []; allowed: an object"),
    ],
)
def test_wrong_values(value: Any, read: Read, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(_fields(x=value))
    assert message in str(error.value)


def test_an_absent_field_is_nothing() -> None:
    with pytest.raises(CheckpointError, match=r"f\.json: y is nothing"):
        _fields().integer("y")


def test_defaults_and_values() -> None:
    fields = _fields(a=3, b=None, c=[4, 5], d={"e": "text"}, g=False, h=["i"])
    assert fields.integer("a") == 3
    assert fields.integer("b", 7) == 7
    assert fields.optional_id("b", 5) is None
    assert fields.optional_id("a", 4) == 3
    assert fields.ids("c", 6) == (4, 5)
    assert fields.integers("a") == (3,)
    assert fields.integers("b") == ()
    assert fields.integers("c") == (4, 5)
    assert fields.positive("a") == 3.0
    assert fields.boolean("g") is False
    assert fields.section("d").text("e") == "text"
    assert fields.texts("h") == ("i",)


def test_a_nested_field_is_named_in_full() -> None:
    with pytest.raises(CheckpointError, match=r"f\.json: d\.e is 1"):
        _fields(d={"e": 1}).section("d").text("e")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{", "cannot be read as JSON"),
        (b"[1]", "holds a list"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_hold_no_object(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        JsonFields.read(tmp_path / "c.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_fields, "MAX_BYTES", 7)
    (tmp_path / "c.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match=r"c\.json has 8 bytes; allowed: up to 7"):
        JsonFields.read(tmp_path / "c.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"c\.json is missing; give the folder"):
        JsonFields.read(tmp_path / "c.json")


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"x": 1}))
    assert JsonFields.read(tmp_path / "c.json").integer("x") == 1
