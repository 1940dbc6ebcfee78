"""The wire format of ``tokenizer.model``, judged by the library itself."""

from __future__ import annotations

import pytest
import sentencepiece

from tests.runtime.small_sentencepiece import trained
from workbench.runtime import sentencepiece_model

MODEL = trained(prefix=True, symbols=("<eoh>", "<eoa>"))


def library(model: bytes = MODEL) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_pieces_and_kinds_are_the_librarys() -> None:
    pieces, sp = sentencepiece_model.pieces(MODEL), library()
    assert [piece.text for piece in pieces] == [sp.id_to_piece(number) for number in range(sp.get_piece_size())]
    for kind, asked in (
        (sentencepiece_model.UNKNOWN, sp.is_unknown),
        (sentencepiece_model.CONTROL, sp.is_control),
        (sentencepiece_model.BYTE, sp.is_byte),
        (sentencepiece_model.UNUSED, sp.is_unused),
    ):
        assert [piece.kind == kind for piece in pieces] == [asked(number) for number in range(len(pieces))]
    assert [piece.text for piece in pieces if piece.kind == sentencepiece_model.USER_DEFINED] == ["<eoh>", "<eoa>"]


def test_pieces_out_of_use_are_still_decoded() -> None:
    quick = library().piece_to_id("▁quick")
    assert quick in library().encode("a quick fox")
    changed = library(sentencepiece_model.without(MODEL, {0, 1, 3, quick}))
    ids = changed.encode("a quick fox<eoh><eoa>")
    assert not {1, 3, quick} & set(ids)
    assert 4 in ids
    assert changed.decode(ids) == "a quick fox<eoh><eoa>"
    assert changed.decode([quick, 3]) == "quick<eoh>"


def test_nothing_changes_where_nothing_is_asked() -> None:
    assert sentencepiece_model.without(MODEL, set()) == MODEL


def test_no_prefix() -> None:
    changed = library(sentencepiece_model.without_prefix(MODEL))
    assert library().encode("fox", out_type=str)[0].startswith("▁")
    assert not changed.encode("fox", out_type=str)[0].startswith("▁")
    assert changed.decode(library().encode("fox")) == " fox"


@pytest.mark.parametrize("model", [MODEL[:1001], b"\x0a\xff", b"\x0b\x00", b"\xff" * 20, b"\x08\x01"], ids=len)
def test_broken_bytes_are_told(model: bytes) -> None:
    with pytest.raises(ValueError, match="message"):
        sentencepiece_model.pieces(model)
