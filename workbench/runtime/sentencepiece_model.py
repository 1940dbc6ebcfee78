"""The bytes of a SentencePiece ``tokenizer.model``: what kind each piece is, and the same model with changes.

The file is a protobuf ``ModelProto`` (google/sentencepiece, ``sentencepiece_model.proto``). Only what is needed of its
wire format is read here, as the library itself neither tells nor changes a piece's kind. Encodes no text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Field numbers of ModelProto, of SentencePiece and of NormalizerSpec within it.
_PIECES, _NORMALIZER = 1, 3
_TEXT, _KIND = 1, 3
_ADD_DUMMY_PREFIX = 3
_VARINT, _FIXED64, _BYTES = 0, 1, 2


@dataclass(frozen=True)
class Piece:
    """One piece: its text, and its kind as numbered above."""

    text: str
    kind: int


@dataclass(frozen=True)
class _Field:
    """One field of a message: its number, the whole of it, and the value alone."""

    number: int
    raw: bytes
    value: bytes | int


def pieces(model: bytes) -> list[Piece]:
    """Every piece, in the order of ids.

    Raises:
        ValueError: the bytes are no such message.
    """
    return [_piece(field) for field in _fields(model) if field.number == _PIECES]


def without(model: bytes, ids: Collection[int]) -> bytes:
    """The same model, which never encodes a text to one of ``ids``; they are decoded as before.

    Only normal and user-defined pieces are changed: no text becomes one of another kind's.

    Raises:
        ValueError: the bytes are no such message.
    """
    result = bytearray()
    place = 0
    for field in _fields(model):
        if field.number == _PIECES:
            out_of_use = place in ids and _piece(field).kind in (NORMAL, USER_DEFINED)
            result += _with_number(field, _KIND, UNUSED) if out_of_use else field.raw
            place += 1
        else:
            result += field.raw
    return bytes(result)


def without_prefix(model: bytes) -> bytes:
    """The same model, which adds no space before a text, nor takes one away when it decodes.

    Raises:
        ValueError: the bytes are no such message.
    """
    return b"".join(
        _with_number(field, _ADD_DUMMY_PREFIX, 0) if field.number == _NORMALIZER else field.raw
        for field in _fields(model)
    )


def _piece(field: _Field) -> Piece:
    text, kind = "", NORMAL
    for part in _parts(field):
        if part.number == _TEXT and isinstance(part.value, bytes):
            text = part.value.decode("utf-8", "replace")
        elif part.number == _KIND and isinstance(part.value, int):
            kind = part.value
    return Piece(text, kind)


def _with_number(field: _Field, number: int, value: int) -> bytes:
    """A field that holds the same message, one small number in it changed."""
    inner = b"".join(part.raw for part in _parts(field) if part.number != number)
    inner += bytes([number << 3 | _VARINT, value])
    return bytes([field.number << 3 | _BYTES]) + _varint(len(inner)) + inner


def _parts(field: _Field) -> Iterator[_Field]:
    if not isinstance(field.value, bytes):
        raise ValueError("a part of it is no message")
    return _fields(field.value)


def _fields(message: bytes) -> Iterator[_Field]:
    """The fields of a protobuf message, in its order."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _read_varint(message, place)
        value: bytes | int
        match tag & 7:
            case 0:
                value, place = _read_varint(message, place)
            case 1 | 5 as wire:
                end = place + (8 if wire == _FIXED64 else 4)
                value, place = message[place:end], end
            case 2:
                size, place = _read_varint(message, place)
                value, place = message[place : place + size], place + size
            case other:
                raise ValueError(f"a field of the message has wire type {other}")
        if place > len(message):
            raise ValueError("the message ends inside a field")
        yield _Field(tag >> 3, message[start:place], value)


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("the message ends inside a number")


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
