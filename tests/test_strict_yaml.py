from __future__ import annotations

import pytest

from workbench.strict_yaml import read_yaml


def test_a_text_is_read() -> None:
    assert read_yaml(b"a: {b: [1, 2]}\nc: null") == {"a": {"b": [1, 2]}, "c": None}
    assert read_yaml(b"") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "line 1"),
        (b"a: 1\nb: 2\na: 3", r"'a' twice .*line 3"),
        (b"x:\n  a: 1\n  a: 1", r"'a' twice .*line 3"),
        (b"\xff\xfe", "utf-8"),
        (b"a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_says_where_in_one_line(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
