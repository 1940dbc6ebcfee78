"""``--trust_remote_code``: off in every command, with a warning when on."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.cli.main import load_command, main

COMMANDS = ("calibrate", "convert", "run", "summarize", "compare")


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_off_unless_given(name: str) -> None:
    parser = load_command(name).parser()
    (flag,) = (action for action in parser._actions if "--trust_remote_code" in action.option_strings)
    assert flag.default is False


def test_a_warning_says_which_folder_is_trusted(
    tiny_checkpoint_dir: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--checkpoint_dir", str(tiny_checkpoint_dir), "--tokenizer_dir", str(tiny_model_dir)]
    assert main([*words, "--input_text", "a", "--max_output_len", "1", "--trust_remote_code"]) == 0
    told = capsys.readouterr().err
    assert f"workbench: warning: running the Python code of the tokenizer in {tiny_model_dir}, as trust_" in told
