"""What is kept and what makes room."""

from __future__ import annotations

import threading
import time

import pytest

from workbench.quantization.byte_cache import ByteCache


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key * 10

    cache = ByteCache(20, make, len)
    assert [cache(key) for key in "abac"] == ["a" * 10, "b" * 10, "a" * 10, "c" * 10]
    assert made == ["a", "b", "c"]
    assert cache.keys == ("a", "c")
    assert cache.nbytes == 20
    cache("b")
    assert made == ["a", "b", "c", "b"]


def test_the_newest_is_held_even_if_it_is_too_large() -> None:
    cache = ByteCache(5, lambda key: key * 10, len)
    assert cache("a") == cache("a")
    assert cache.keys == ("a",)
    cache("b")
    assert cache.keys == ("b",)


def test_a_value_that_cannot_be_made_is_not_held() -> None:
    cache: ByteCache[str, str] = ByteCache(5, lambda key: {"a": "A"}[key], len)
    with pytest.raises(KeyError):
        cache("b")
    assert cache("a") == "A"
    assert cache.keys == ("a",)


def test_threads_make_a_value_once() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        time.sleep(0.02)
        return key

    cache = ByteCache(5, make, len)
    threads = [threading.Thread(target=cache, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]
