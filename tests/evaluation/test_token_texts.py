from __future__ import annotations

from workbench.evaluation.token_texts import token_texts


class _Words:
    """A tokenizer in the manner of SentencePiece: a word's space is a sign that decoding a single token drops."""

    names = ("▁the", "cat", "<0xE2>", None, "<s>")

    def convert_ids_to_tokens(self, token):
        return self.names[token]

    def decode(self, ids):
        return {"▁the": "the", "<0xE2>": "\N{REPLACEMENT CHARACTER}", "<s>": ""}.get(
            self.names[ids[0]], self.names[ids[0]]
        )


def test_each_token_by_itself():
    assert token_texts(_Words(), [0, 1, 0]) == [" the", "cat", " the"]


def test_nothing_is_lost():
    """A part of a character, a row without a token, a token that decodes to nothing."""
    assert token_texts(_Words(), [2, 3, 4]) == ["<0xE2>", "<3>", "<s>"]


def test_a_real_tokenizer_gives_the_text_back(demo_tokenizer):
    text = "Two words,\n    and  <|im_end|> more."
    ids = demo_tokenizer.encode(text)
    texts = token_texts(demo_tokenizer, ids)
    assert "".join(texts) == text
    assert "<|im_end|>" in texts
    euro = demo_tokenizer.encode("🦜")
    assert len(euro) > 1
    assert all(piece and "\N{REPLACEMENT CHARACTER}" not in piece for piece in token_texts(demo_tokenizer, euro))
