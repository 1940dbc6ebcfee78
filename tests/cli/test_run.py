"""``workbench run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.cli.main import main

Result = Callable[..., dict[str, Any]]
Refused = Callable[..., str]


def test_one_text_is_streamed(
    result_of: Result, tiny_checkpoint_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "5")
    result = result_of(*words, "--input_text", "Once upon")
    (output,) = result["outputs"]
    assert output["input_text"] == "Once upon"
    assert len(output["output_ids"]) == 5
    told = capsys.readouterr().out
    assert told.startswith(result["reason"] + "\n\nOnce upon\n" + output["output_text"] + "\n")
    assert result["backend"] == "cpu"


def test_several_texts_give_what_each_gives_alone(
    result_of: Result, tiny_checkpoint_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    npy = tmp_path / "ids.bin"
    words = ("run", "--engine_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "6")
    texts = ["One", "Two words and more", "3"]
    together = result_of(*words, "--input-text", *texts, "--output-npy", npy, "--backend", "torch")["outputs"]
    alone = [result_of(*words, "--input_text", text, "--backend", "torch")["outputs"][0] for text in texts]
    assert together == alone
    table = np.load(npy)
    assert table.dtype == np.int64
    assert table.shape[0] == 3
    for row, output in zip(table.tolist(), together, strict=True):
        assert [token for token in row if token != -1] == output["output_ids"]


def test_several_texts_are_streamed_in_order(
    result_of: Result,
    tiny_checkpoint_dir: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from workbench.runtime.session import TorchSession

    shown: list[str] = []
    decode = TorchSession.decode
    monkeypatch.setattr(TorchSession, "decode", lambda *given: shown.append(capsys.readouterr().out) or decode(*given))
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "4")
    outputs = result_of(*words, "--input_text", "One", "Two")["outputs"]
    first, second = (output["output_text"] for output in outputs)
    shown.append(capsys.readouterr().out)
    assert len(shown) == 4
    assert all(shown)
    assert f"\n[1] One\n{first}\n\n[2] Two\n{second}\n" in "".join(shown)


def test_limits_of_an_engine_hold_on_every_backend(
    refused: Refused, tiny_engine_dir: Path, tiny_model_dir: Path
) -> None:
    words = ("run", "--engine_dir", tiny_engine_dir, "--tokenizer_dir", tiny_model_dir, "--backend", "cpu")
    words = (*words, "--max_output_len", "2", "--input_text")
    assert "allowed: up to max_input_len 300" in refused(*words, "word " * 301)
    assert "4 prompts in one batch; allowed: up to max_batch_size 3" in refused(*words, "a", "b", "c", "d")


def test_the_default_output_is_lowered_to_the_limits_and_a_choice_is_refused(
    result_of: Result,
    refused: Refused,
    tiny_engine_dir: Path,
    tiny_model_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("run", "--engine_dir", tiny_engine_dir, "--tokenizer_dir", tiny_model_dir, "--backend", "cpu")
    words = (*words, "--input_text", "a")
    assert len(result_of(*words)["outputs"][0]["output_ids"]) == 8
    assert "max_output_len 8: the default 64 lowered to what the limits leave\n" in capsys.readouterr().out
    assert "max_output_len 9; allowed: 1 to 8" in refused(*words, "--max_output_len", "9")
    assert "max_output_len 0; allowed: 1 to 8; ask for at least one" in refused(*words, "--max_output_len", "0")


def test_a_checkpoint_has_only_the_limits_of_its_model(
    result_of: Result, refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path
) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir)
    (output,) = result_of(*words, "--input_text", "word " * 500)["outputs"]
    assert output["input_tokens"] > 300
    assert len(output["output_ids"]) == 512 - output["input_tokens"]
    four = result_of(*words, "--input_text", "a", "b", "c", "d", "--max_output_len", "9")["outputs"]
    assert [len(output["output_ids"]) for output in four] == [9] * 4
    assert "512 together; ask for at most 511 tokens" in refused(*words, "--input_text", "a", "--max_output_len", "512")
    assert "up to the model's max_position_embeddings 512" in refused(*words, "--input_text", "word " * 600)


def test_a_missing_tokenizer(refused: Refused, tiny_checkpoint_dir: Path, tmp_path: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--input_text", "a", "--tokenizer_dir")
    assert f"{tmp_path} has no tokenizer.json" in refused(*words, tmp_path)
    assert f"tokenizer folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none")


def test_a_folder_of_neither_kind(refused: Refused, tiny_model_dir: Path, tmp_path: Path) -> None:
    words = ("run", "--tokenizer_dir", tiny_model_dir, "--input_text", "a", "--engine_dir")
    assert f"folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none")
    assert f"{tiny_model_dir} is neither an engine nor a checkpoint of the workbench" in refused(*words, tiny_model_dir)


def test_tensorrt_cannot_run_a_checkpoint(refused: Refused, tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> None:
    words = ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--input_text", "a")
    assert "build an engine first" in refused(*words, "--backend", "tensorrt")


def test_one_folder_must_be_given(refused: Refused, tiny_model_dir: Path) -> None:
    told = refused("run", "--tokenizer_dir", tiny_model_dir, "--input_text", "a")
    assert "one of the arguments --engine_dir --checkpoint_dir is required" in told


def test_an_output_file_that_cannot_be_written_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    words = ("run", "--checkpoint_dir", "none", "--tokenizer_dir", "none", "--input_text", "a", "--output_npy")
    assert f"--output_npy {tmp_path} is a folder; give the path of a file" in refused(*words, tmp_path)
    assert f"the folder {tmp_path / 'none'} does not exist" in refused(*words, tmp_path / "none" / "x.npy")


def test_a_full_disk_is_one_sentence(
    tiny_checkpoint_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--checkpoint_dir", str(tiny_checkpoint_dir), "--tokenizer_dir", str(tiny_model_dir)]
    assert main([*words, "--input_text", "a", "--max_output_len", "1", "--output_npy", "/dev/full"]) == 2
    told = capsys.readouterr().err
    assert told == "workbench: error: No space left on device; make room, or write to another disk\n"


@pytest.fixture
def run_words(tiny_checkpoint_dir: Path, tiny_model_dir: Path) -> tuple[Any, ...]:
    return ("run", "--checkpoint_dir", tiny_checkpoint_dir, "--tokenizer_dir", tiny_model_dir, "--max_output_len", "12")


def test_draws_follow_the_seed_and_not_the_batch(result_of: Result, run_words: tuple[Any, ...]) -> None:
    words = (*run_words, "--backend", "torch", "--temperature", "1.5", "--top_p", "0.99", "--random_seed", "3")
    together = result_of(*words, "--input_text", "One", "Two", "One")
    assert together["sampling"] == {
        "temperature": 1.5,
        "top_k": 0,
        "top_p": 0.99,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "random_seed": 3,
        "bad_words": [],
    }
    first, second, third = (output["output_ids"] for output in together["outputs"])
    assert result_of(*words, "--input_text", "Two")["outputs"][0]["output_ids"] == second
    assert first != third
    greedy = result_of(*run_words, "--backend", "torch", "--input_text", "One")["outputs"][0]["output_ids"]
    assert greedy != first
    still_greedy = (*run_words, "--backend", "torch", "--top_k", "1", "--temperature", "2", "--input_text", "One")
    assert result_of(*still_greedy)["outputs"][0]["output_ids"] == greedy


def test_a_seed_without_a_draw_is_told(
    result_of: Result, run_words: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*run_words, "--backend", "torch", "--input_text", "One", "--random_seed", "3")
    told = "--random_seed 3: nothing is drawn; add --temperature, --top_k or --top_p"
    result_of(*words)
    assert told in capsys.readouterr().out
    result_of(*words, "--top_p", "0.9")
    assert told not in capsys.readouterr().out


def test_a_stop_word_ends_a_text_before_it(
    result_of: Result, run_words: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*run_words, "--input_text", "One")
    free = result_of(*words)["outputs"][0]
    capsys.readouterr()
    stop = free["output_text"][12:15]
    (output,) = result_of(*words, "--stop_words", "nowhere", stop)["outputs"]
    assert output["output_text"] == free["output_text"][: free["output_text"].index(stop)]
    assert output["output_ids"] == free["output_ids"][: len(output["output_ids"])]
    assert len(output["output_ids"]) < 12
    assert f"\nOne\n{output['output_text']}\n" in capsys.readouterr().out


def test_bad_words_and_end_ids(result_of: Result, run_words: tuple[Any, ...], demo_tokenizer: Any) -> None:
    words = (*run_words, "--input_text", "One")
    (free,) = result_of(*words)["outputs"]
    third = free["output_ids"][2]
    (ended,) = result_of(*words, "--end_id", "0", str(third))["outputs"]
    assert ended["output_ids"] == free["output_ids"][: free["output_ids"].index(third)]
    word = demo_tokenizer.decode([free["output_ids"][0]])
    (other,) = result_of(*words, "--bad_words", word)["outputs"]
    assert other["output_ids"][0] != free["output_ids"][0]
    assert free["output_ids"][0] not in other["output_ids"]


def test_a_chat_is_written_as_the_tokenizer_wants_it(
    result_of: Result, run_words: tuple[Any, ...], demo_tokenizer: Any
) -> None:
    words = (*run_words, "--chat", "--input_text", "Who are you?")
    messages = [{"role": "user", "content": "Who are you?"}]
    expected = len(demo_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    assert result_of(*words)["outputs"][0]["input_tokens"] == expected
    told = result_of(*words, "--system_text", "Be brief.")["outputs"][0]["input_tokens"]
    # The template puts a longer system text where none is given.
    assert told < expected


def test_what_sampling_cannot_do(refused: Refused, run_words: tuple[Any, ...]) -> None:
    words = (*run_words, "--input_text", "a")
    assert "top_p is 0.0; allowed: above 0, up to 1" in refused(*words, "--top_p", "0")
    assert "--num_beams 2; allowed: 1: there is no beam search yet" in refused(*words, "--num_beams", "2")
    assert "--stop_words holds an empty text" in refused(*words, "--stop_words", "a", "")
    assert "--bad_words holds an empty text" in refused(*words, "--bad_words", "")
    assert "--end_id 49152; allowed: 0 to 49151, the model's ids" in refused(*words, "--end_id", "2", "49152")
    assert "--system_text without --chat; add --chat" in refused(*words, "--system_text", "a")


def test_prompts_of_a_file_are_one_batch_and_outputs_go_to_files(
    result_of: Result, run_words: tuple[Any, ...], demo_tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["One", "Two words and more", "3"]
    expected = result_of(*run_words, "--backend", "torch", "--input_text", *texts)["outputs"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts) + "\n")
    ids = [demo_tokenizer.encode(text) for text in texts]
    (tmp_path / "ids.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in ids))
    longest = max(map(len, ids))
    np.save(tmp_path / "ids.npy", [row + [-1] * (longest - len(row)) for row in ids])
    for name in ("prompts.txt", "ids.csv", "ids.npy"):
        out, logits = tmp_path / f"{name}.out.csv", tmp_path / f"{name}.logits.npy"
        files = ("--output_csv", out, "--output-logits-npy", logits)
        words = (*run_words, "--backend", "torch", "--input_file", tmp_path / name, *files)
        outputs = result_of(*words)["outputs"]
        assert outputs == expected
        rows = [[int(cell) for cell in line.split(",")] for line in out.read_text().splitlines()]
        assert rows == [output["output_ids"] for output in outputs]
        table = np.load(logits)
        assert table.shape == (3, max(map(len, rows)), len(demo_tokenizer))
        for place, row in enumerate(rows):
            assert table[place, : len(row)].argmax(-1).tolist() == row


def test_logits_are_those_before_penalties(result_of: Result, run_words: tuple[Any, ...], tmp_path: Path) -> None:
    words = (*run_words, "--backend", "torch", "--input_text", "One", "--output_logits_npy", tmp_path / "a.npy")
    (free,) = result_of(*words)["outputs"]
    before = np.load(tmp_path / "a.npy")
    bad = ("--bad_words", free["output_text"][:4])
    result_of(*words, "--repetition_penalty", "5", *bad)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[0, 0], before[0, 0])


def test_nothing_is_written_when_a_run_fails(
    refused: Refused, run_words: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.errors import LimitError
    from workbench.runtime.session import TorchSession

    def fail(*_: Any) -> None:
        raise LimitError("no more")

    (tmp_path / "a.csv").write_text("old")
    files = [("--output_csv", "a.csv"), ("--output_npy", "b.npy"), ("--output_logits_npy", "c.npy")]
    words = [word for flag, name in files for word in (flag, tmp_path / name)]
    monkeypatch.setattr(TorchSession, "decode", fail)
    assert "no more" in refused(*run_words, "--input_text", "One", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_files_that_are_one_file(refused: Refused, tmp_path: Path) -> None:
    words = ("run", "--checkpoint_dir", "none", "--tokenizer_dir", "none")
    (tmp_path / "a.csv").write_text("1,2\n")
    same = ("--input_file", tmp_path / "a.csv", "--output_csv", tmp_path / "a.csv")
    assert "--input_file and --output_csv are both" in refused(*words, *same)
    same = ("--output_npy", tmp_path / "b", "--output_logits_npy", tmp_path / "b")
    told = refused(*words, "--input_text", "a", *same)
    assert f"--output_npy and --output_logits_npy are both {tmp_path / 'b'}; give each a file of its own" in told


def test_texts_and_a_file_are_a_choice(refused: Refused, run_words: tuple[Any, ...], tmp_path: Path) -> None:
    assert "one of the arguments --input_text --input_file is required" in refused(*run_words)
    both = ("--input_text", "a", "--input_file", tmp_path / "a.txt")
    assert "--input_file: not allowed with argument --input_text" in refused(*run_words, *both)
    assert "a.txt does not exist" in refused(*run_words, "--input_file", tmp_path / "a.txt")
    (tmp_path / "a.csv").write_text("5\n49152\n")
    told = refused(*run_words, "--input_file", tmp_path / "a.csv")
    assert "prompt 2" in told
    assert "49152" in told


def test_a_folder_with_tokenizer_model_alone(
    result_of: Result, random_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.runtime.small_sentencepiece import internlm1

    model, folder = random_model_dir(vocab=420, max_positions=64), internlm1(tmp_path / "tokenizer")
    assert main(["convert", "--model_dir", str(model), "--dtype", "float32", "-o", str(tmp_path / "checkpoint")]) == 0
    words = ("run", "--checkpoint_dir", tmp_path / "checkpoint", "--tokenizer_dir", folder, "--max_output_len", "5")
    (output,) = result_of(*words, "--chat", "--input_text", "再见<eoa>")["outputs"]
    assert output["input_tokens"] > 20
    assert len(output["output_ids"]) <= 5


def test_a_tokenizer_of_a_larger_model_is_refused(
    refused: Refused, random_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.runtime.small_sentencepiece import internlm2

    model, folder = random_model_dir(vocab=420, max_positions=64), internlm2(tmp_path / "t", eos_token="<extra>")
    (folder / "added_tokens.json").write_text('{"<extra>": 420}')
    assert main(["convert", "--model_dir", str(model), "--dtype", "float32", "-o", str(tmp_path / "checkpoint")]) == 0
    told = refused("run", "--checkpoint_dir", tmp_path / "checkpoint", "--tokenizer_dir", folder, "--input_text", "a")
    assert "eos_token '<extra>' has the id 420; allowed: ids of the model's vocabulary, 0 to 419; give the" in told


def test_a_stretched_model_takes_longer_texts(
    result_of: Result, refused: Refused, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Convert, compare on windows beyond the model's own 512 positions, and run."""
    words = ("convert", "--model_dir", tiny_model_dir, "--dtype", "float32", "--max_positions")
    assert "max_positions 100; allowed: 512 to" in refused(*words, "100", "-o", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    checkpoint = tmp_path / "checkpoint"
    assert main([*map(str, words), "600", "-o", str(checkpoint)]) == 0
    compared = ("compare", "--model_dir", tiny_model_dir, "--checkpoint_dir", checkpoint, "--windows", "1")
    assert main([*map(str, compared), "--window_len", "600"]) == 0
    told = ("run", "--checkpoint_dir", checkpoint, "--tokenizer_dir", tiny_model_dir, "--input_text", "word " * 560)
    assert len(result_of(*told, "--max_output_len", "20")["outputs"][0]["output_ids"]) == 20
    fix = "convert the model with a larger max_positions"
    assert fix in refused(*told[:-1], "word " * 700)
    build = ("build", "--checkpoint_dir", checkpoint, "--max_positions", "900", "--output_dir", tmp_path / "e")
    assert "asks for 900, but" in refused(*build)
