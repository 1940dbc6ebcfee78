from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.engine.folder import (
    CONFIG_NAME,
    EngineConfig,
    is_engine,
    plan_path,
    read_engine_config,
    require_version,
    write_engine_config,
)
from workbench.errors import BackendError, CheckpointError
from workbench.recipe import BuildLimits, Recipe


def config_in(folder: Path) -> EngineConfig:
    return EngineConfig(
        folder=folder / "engine",
        product="tensorrt_rtx",
        version="1.2.3",
        targets=("sm80", "sm89"),
        recipe=Recipe(dtype="bfloat16", build=BuildLimits(max_batch_size=2)),
        checkpoint_dir=folder / "checkpoints" / "a",
        checkpoint_checksum="abc",
    )


def written(folder: Path) -> EngineConfig:
    config = config_in(folder)
    config.folder.mkdir()
    config.checkpoint_dir.mkdir(parents=True)
    write_engine_config(config.folder, config, {"plan_bytes": 5})
    return config


def test_round_trip(tmp_path: Path) -> None:
    config = written(tmp_path)
    assert read_engine_config(config.folder) == config
    assert is_engine(config.folder)
    assert plan_path(config.folder, 1).name == "rank1.engine"


def test_folders_may_move_together(tmp_path: Path) -> None:
    config = written(tmp_path / "here" if (tmp_path / "here").mkdir() is None else tmp_path)
    text = (config.folder / CONFIG_NAME).read_text()
    assert str(tmp_path) not in text
    moved = (tmp_path / "here").rename(tmp_path / "there")
    assert read_engine_config(moved / "engine").checkpoint_dir == moved / "checkpoints" / "a"


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere does not exist.*workbench build"):
        read_engine_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config.json of kind 'engine'"):
        read_engine_config(tmp_path)
    config = written(tmp_path)
    path = config.folder / CONFIG_NAME
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"workbench": {**content["workbench"], "format_version": 99}}))
    with pytest.raises(CheckpointError, match=r"format version 99; allowed: 1; build it again"):
        read_engine_config(config.folder)
    del content["workbench"]["product"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lacks 'product'"):
        read_engine_config(config.folder)


def test_an_engine_of_another_version_is_refused(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    require_version(config, "tensorrt_rtx", "1.2.3")
    with pytest.raises(
        BackendError, match=r"built with tensorrt_rtx 1\.2\.3, here is tensorrt_rtx 1\.9.*--backend cpu"
    ):
        require_version(config, "tensorrt_rtx", "1.9")
