"""Writes the demo model's tokenizer: byte-level BPE from a GGUF file's vocabulary. Knows nothing about weights."""

from __future__ import annotations

from pathlib import Path

from workbench.checkpoint.gguf_source import GgufLlama
from workbench.checkpoint.hf_config import write_json

_CONTROL = 3  # GGUF's token type of special tokens


def write_tokenizer(folder: Path, source: GgufLlama) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` with the chat template; needs no remote code to read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = source.field("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in source.field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # The file calls its way of cutting text "smollm": every digit alone, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = source.field("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[source.field("tokenizer.ggml.bos_token_id")],
            "eos_token": tokens[source.field("tokenizer.ggml.eos_token_id")],
            "pad_token": tokens[source.field("tokenizer.ggml.padding_token_id")],
            "unk_token": tokens[source.field("tokenizer.ggml.unknown_token_id")],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": source.field("tokenizer.chat_template"),
        },
    )
