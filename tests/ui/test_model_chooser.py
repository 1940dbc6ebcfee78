from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workbench.bench.models import HUGGING_FACE
from workbench.recipe import Recipe
from workbench.ui.model_chooser import FOLDER, ModelChooser


@pytest.fixture
def chooser(speaking_bench):
    return ModelChooser(speaking_bench, "Candidate", None)


def test_it_offers_what_the_bench_can_open(chooser):
    assert chooser.menu.options == ("Hugging Face", "the recipe as it is", FOLDER)
    assert chooser.menu.value == "the recipe as it is"
    assert chooser.folder.layout.display == "none"


def test_the_menu_is_the_choice(chooser):
    chooser.menu.value = "Hugging Face"
    assert chooser.choice == HUGGING_FACE
    chooser.choice = None
    assert chooser.menu.value == "the recipe as it is"


def test_a_folder_is_typed(chooser):
    chooser.menu.value = FOLDER
    assert chooser.choice == ""
    assert chooser.folder.layout.display == ""
    chooser.folder.value = "made/checkpoint"
    assert chooser.choice == "made/checkpoint"
    chooser.choice = Path("other")
    assert (chooser.menu.value, chooser.folder.value) == (FOLDER, "other")
    assert chooser.choice == Path("other")


def test_a_recipe_that_is_given_joins_the_menu(speaking_bench):
    recipe = Recipe(dtype="float16")
    chooser = ModelChooser(speaking_bench, "Reference", recipe)
    assert chooser.menu.value == "float16"
    other = Recipe(dtype="float16", model="elsewhere")
    chooser.choice = other
    assert chooser.menu.value == "float16, another one"
    chooser.menu.value = "float16"
    assert chooser.choice == recipe


def test_what_was_made_meanwhile_is_offered(chooser, speaking_bench):
    folder = speaking_bench.checkpoint()
    assert len(chooser.menu.options) == 3
    chooser.refresh()
    name = "made before: INT8 weights, bfloat16"
    assert name in chooser.menu.options
    assert chooser.menu.value == "the recipe as it is"
    chooser.menu.value = name
    assert chooser.choice == folder


def test_what_was_deleted_meanwhile_stays_chosen_by_its_folder(chooser, speaking_bench):
    folder = speaking_bench.checkpoint()
    chooser.choice = folder
    shutil.rmtree(folder)
    chooser.refresh()
    assert (chooser.menu.value, chooser.folder.value) == (FOLDER, str(folder))
    assert chooser.choice == folder
