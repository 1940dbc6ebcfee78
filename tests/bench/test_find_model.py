"""Which folder a model's name means."""

from __future__ import annotations

import shutil

import pytest

from workbench.bench.find_model import find_model
from workbench.errors import CheckpointError
from workbench.progress import ProgressEvent


def test_find_model_names_what_is_allowed(tmp_path, speaking_model_dir):
    assert find_model(speaking_model_dir) == speaking_model_dir
    with pytest.raises(CheckpointError, match=r"'internlm/nothing-7b' is neither a folder nor in the local cache"):
        find_model("internlm/nothing-7b", tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("internlm/nothing-7b", "internlm/nothing-7b"),
        ("nothing-7b", "OWNER/NAME"),
        ("./models/nothing-7b", "OWNER/NAME"),
        ("a/b/nothing-7b", "OWNER/NAME"),
    ],
)
def test_a_model_that_is_not_here_is_told_how_to_come(tmp_path, name, told):
    with pytest.raises(CheckpointError, match=f"or download it first: hf download {told}$"):
        find_model(name, tmp_path)


def test_the_embedded_model_is_written_once(tmp_path, demo_model_dir):
    told: list[ProgressEvent] = []
    shutil.copytree(demo_model_dir, tmp_path / "embedded-model")
    assert find_model(None, tmp_path, told.append) == tmp_path / "embedded-model"
    assert [event.task.rpartition(" is ")[2] for event in told] == ["complete and reused"]
