"""The offline text and its fixed parts."""

from __future__ import annotations

from typing import Any

from workbench.evaluation import texts as judged
from workbench.quantization.texts import PARTS, offline_part, offline_text, text_sha256


def test_the_parts_make_up_the_whole_text_by_their_shares() -> None:
    from pydoc_data.topics import topics

    parts = {part: offline_part(part) for part in PARTS}
    assert sum(PARTS.values()) == 1
    for part, share in PARTS.items():
        assert abs(len(parts[part]) / len(offline_text()) - share) < 0.01
    for text in topics.values():
        assert sum(text in part for part in parts.values()) == 1


def test_no_long_paragraph_stands_in_two_parts() -> None:
    def paragraphs(text: str) -> set[str]:
        return {words for part in text.split("\n\n") if len(words := " ".join(part.split())) >= 80}

    calibrate, tune, test = (paragraphs(offline_part(part)) for part in ("calibrate", "tune", "test"))
    assert calibrate
    assert not calibrate & test
    assert not calibrate & tune
    assert not tune & test


def test_the_parts_are_long_enough_for_what_they_are_for(demo_tokenizer: Any) -> None:
    counts = {part: len(demo_tokenizer.encode(offline_part(part), verbose=False)) // 512 for part in PARTS}
    assert counts["calibrate"] >= 128
    assert counts["tune"] >= 16
    assert counts["test"] >= 60


def test_parts_are_the_same_every_time_and_in_both_places() -> None:
    assert text_sha256(offline_part("test")) == text_sha256(judged.offline_part("test"))
    assert judged.offline_text is offline_text
