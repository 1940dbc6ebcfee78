"""The playground through its widgets, on a small random model."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import pytest
from figure_texts import faults

from workbench.bench.models import HUGGING_FACE
from workbench.errors import LimitError
from workbench.recipe import Recipe
from workbench.ui import playground_panel
from workbench.ui.playground_panel import ALONG, ANSWERS, PlaygroundPanel

FLOAT16 = Recipe(dtype="float16")


@pytest.fixture
def panel(speaking_bench):
    panel = PlaygroundPanel(speaking_bench)
    panel.prompt.value, panel.max_tokens.value = "3 1 4", 6
    yield panel
    panel.close()


def _generated(panel):
    panel._job_panel.start_button.click()
    panel.job.wait(60)
    return panel.job


def test_before_the_first_answer_there_is_only_a_question(panel):
    assert panel._result.layout.display == "none"
    assert panel.frame.empty
    assert panel.figure is None
    assert repr(panel) == "PlaygroundPanel(nothing said yet)"
    assert [chooser.choice for chooser in panel.choosers] == [HUGGING_FACE, None]


def test_without_a_chat_template_it_says_so(panel):
    assert panel.chat.disabled
    assert "the tokenizer has none" in panel.chat.description
    assert panel.system.disabled


def test_a_chat_template_is_used_where_there_is_one(speaking_bench):
    (speaking_bench.model_dir / "chat_template.jinja").write_text("{{ messages }}")
    panel = PlaygroundPanel(speaking_bench)
    assert panel.chat.value
    assert not panel.system.disabled
    panel.chat.value = False
    assert panel.system.disabled


def test_generate_fills_the_columns(panel):
    assert _generated(panel).state == "done"
    talk = panel.conversation
    assert all(len(answer.tokens) <= 6 for answer in talk.answers)
    assert panel._result.layout.display == ""
    assert len(panel._answers.children) == 2
    for number, column in enumerate(panel._columns[:2]):
        shown = [panel._text_of(token) for token in talk.answers[number].ids]
        assert column.text.texts == shown
        assert not column.text.busy
        assert "tokens/s" in column.head.value
    assert "Hugging Face float32" in panel._columns[0].head.value
    assert "INT8 weights, bfloat16" in panel._columns[1].head.value
    assert list(panel.frame["position"]) == list(range(max(len(answer.tokens) for answer in talk.answers)))
    assert panel.figure.axes
    assert faults(panel.figure) == []
    assert "INT8 weights, bfloat16: " in repr(panel)


def test_every_model_reads_the_first_answer(panel):
    _generated(panel)
    assert panel.reading.ids == panel.conversation.answers[0].ids
    panel.view.value = ALONG
    assert [text for text in panel._columns[1].text.texts if not text.startswith("[")] == panel._columns[0].text.texts
    assert "choice [INT8 weights, bfloat16]" in panel.frame.columns
    assert panel._table.value
    _generated(panel)
    assert panel.view.value == ANSWERS


def test_three_models(panel):
    panel._more.click()
    assert len(panel.choosers) == 3
    assert panel._more.layout.display == "none"
    panel.choosers[2].choice = FLOAT16
    assert _generated(panel).state == "done"
    assert panel.conversation.names == ["Hugging Face float32", "INT8 weights, bfloat16", "float16"]
    assert len(panel._answers.children) == 3


def test_the_third_model_goes_again(panel):
    assert panel._fewer.layout.display == "none"
    for _ in range(2):
        panel._more.click()
        third = panel.choosers[2]
        assert panel._fewer.layout.display == ""
        panel._fewer.click()
        assert third.comm is None
        assert panel._models.children[:-2] == tuple(panel.choosers)
        assert (panel._more.layout.display, panel._fewer.layout.display) == ("", "none")
    assert _generated(panel).state == "done"
    assert panel.conversation.names == ["Hugging Face float32", "INT8 weights, bfloat16"]


def test_more_tokens_than_positions_are_put_back_with_a_word(panel):
    most = panel.bench.config.max_position_embeddings
    panel.max_tokens.value = 10 * most
    assert panel.max_tokens.value == most
    assert f"{most:,} is the most: the model's positions" in panel.max_tokens.note.value


def test_one_or_four_models_are_refused(speaking_bench):
    for speakers in ([HUGGING_FACE], [HUGGING_FACE] * 4):
        with pytest.raises(LimitError, match="models; allowed: 2 to 3"):
            PlaygroundPanel(speaking_bench, speakers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty; type a text"),
        ({"prompt": "1" * 5000}, "5000 tokens"),
        ({"max_tokens": 4096}, "max_output_len 4096"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(panel, change, message):
    for name, value in change.items():
        getattr(panel, name).value = value
    assert _generated(panel).state == "failed"
    assert message in panel._job_panel.status.value
    panel.prompt.value, panel.max_tokens.value = "3 1 4", 4
    assert _generated(panel).state == "done"


def test_the_same_model_twice_says_what_to_do(panel):
    panel.choosers[0].choice = None
    assert _generated(panel).state == "failed"
    assert "chosen twice; choose another model" in panel._job_panel.status.value


def test_a_folder_that_is_not_there(panel):
    panel.choosers[1].choice = "nowhere"
    assert _generated(panel).state == "failed"
    assert "folder nowhere does not exist" in panel._job_panel.status.value


def test_a_stop_keeps_what_was_said(panel, monkeypatch):
    converse, stopped = playground_panel.converse, []

    def slowly(speakers, ids, most, on_round, report):
        def stopping(talk):
            on_round(talk)
            if len(talk.answers[0].tokens) == 2:
                panel._job_panel.stop_button.click()
                panel._job_panel.stop_button.click()
                stopped.append(talk)

        return converse(speakers, ids, most, stopping, report)

    monkeypatch.setattr(playground_panel, "converse", slowly)
    assert _generated(panel).state == "stopped"
    assert panel.conversation is stopped[0]
    assert len(panel._columns[0].text.texts) == 2
    assert not panel._columns[0].text.busy
    panel.view.value = ALONG
    assert "press Generate again" in panel._table.value
    assert panel._columns[0].text.texts == []


def test_what_stands_there_when_the_button_is_pressed_counts(panel, speaking_bench, monkeypatch):
    begun, going = threading.Event(), threading.Event()
    speakers = speaking_bench.models.speakers

    def waiting(choices, report):
        begun.set()
        going.wait(10)
        return speakers(choices, report)

    monkeypatch.setattr(speaking_bench.models, "speakers", waiting)
    panel._job_panel.start_button.click()
    assert begun.wait(10)
    panel.prompt.value, panel.max_tokens.value = "9", 2
    speaking_bench.recipe = FLOAT16
    going.set()
    panel.job.wait(60)
    assert panel.conversation.names[1] == "INT8 weights, bfloat16"
    assert len(panel.conversation.prompt) == 5


def test_streaming_shows_the_answer_while_it_grows(panel, monkeypatch):
    monkeypatch.setattr(playground_panel, "UPDATES_PER_SECOND", 1e9)
    lengths = []
    panel._columns[0].text.observe(lambda change: lengths.append(len(change["new"])), "texts")
    _generated(panel)
    assert lengths == list(range(1, len(panel.conversation.answers[0].tokens) + 1))


def test_what_a_model_writes_stays_text(panel, monkeypatch):
    monkeypatch.setattr(panel, "_text_of", lambda _token: "<script>")
    _generated(panel)
    assert panel._columns[0].text.texts[0] == "<script>"
    for view in (ANSWERS, ALONG):
        panel.view.value = view
        assert "<script>" not in panel._table.value


def test_an_error_in_a_callback_shows_in_the_panel(panel, monkeypatch):
    _generated(panel)
    monkeypatch.setattr(playground_panel, "reading_column", None)
    panel.view.value = ALONG
    assert "TypeError" in panel.status


def test_two_playgrounds_on_one_bench(panel, speaking_bench):
    other = PlaygroundPanel(speaking_bench, [FLOAT16, None])
    other.prompt.value, other.max_tokens.value = "2 7", 3
    panel._job_panel.start_button.click()
    other._job_panel.start_button.click()
    for each in (panel, other):
        each.job.wait(60)
        assert each.job.state == "done"
    assert other.conversation.names[0] == "float16"
    assert panel.conversation.names[0] == "Hugging Face float32"


def test_a_closed_panel_no_longer_listens(panel, speaking_bench):
    _generated(panel)
    said = panel.conversation
    panel.close()
    speaking_bench.recipe = replace(speaking_bench.recipe, dtype="float16")
    assert panel.conversation is said


def test_the_panel_keeps_no_model_in_memory(panel, speaking_bench):
    _generated(panel)
    model = weakref.ref(speaking_bench.models.speakers([HUGGING_FACE])[0].session)
    speaking_bench.models.close()
    gc.collect()
    assert model() is None
    panel.view.value = ALONG
    assert panel.figure.axes
    assert "Hugging Face float32" in repr(panel)
