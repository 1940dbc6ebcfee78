"""A small SentencePiece model, trained on the spot as InternLM's are: BPE, bytes to fall back on, text unchanged."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

CORPUS = (
    "你好，世界。今天天气很好，我们去公园吧。",
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1",
    "Tell me about yourself, please. Who are you?",
    "print('hello world')",
)


@functools.cache
def trained(*, prefix: bool, symbols: tuple[str, ...] = (), reserved: int = 0) -> bytes:
    """The bytes of a ``tokenizer.model``.

    Args:
        prefix: a space is added before every text.
        symbols: pieces that stand for themselves, with the ids from 3.
        reserved: how many further such pieces without a meaning, named as InternLM2 names them.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=out,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        user_defined_symbols=[*symbols, *(f"[UNUSED_TOKEN_{number}]" for number in range(reserved))],
        character_coverage=0.99,
        minloglevel=2,
    )
    return out.getvalue()


def write_folder(folder: Path, model: bytes, **files: Any) -> Path:
    """A folder with a ``tokenizer.model`` and JSON files: ``tokenizer_config={...}``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def internlm1(folder: Path) -> Path:
    """As InternLM v1's folders: symbols that end turns inside the model, and no files that tell of them."""
    model = trained(prefix=True, symbols=("<eoh>", "<eoa>"))
    return write_folder(
        folder,
        model,
        tokenizer_config={"auto_map": {"AutoTokenizer": ["tokenization_internlm.InternLMTokenizer", None]}},
        special_tokens_map={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    )


def internlm2(folder: Path, **config: Any) -> Path:
    """As InternLM2's folders: reserved pieces of the model that a file gives names and meanings."""
    names = {3: "<|plugin|>", 4: "<|im_end|>", 5: "<|im_start|>"}
    decoder = {str(number): {"content": text, "special": True} for number, text in names.items()}
    fixed = {0: "<unk>", 1: "<s>", 2: "</s>"}
    decoder |= {str(number): {"content": text, "special": True} for number, text in fixed.items()}
    return write_folder(
        folder,
        trained(prefix=False, reserved=3),
        tokenizer_config={
            "added_tokens_decoder": decoder,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|plugin|>"],
            "bos_token": "<s>",
            "eos_token": "</s>",
            **config,
        },
    )
