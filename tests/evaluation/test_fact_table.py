"""Results that a cell ends with are small tables, not fields of sixteen digits."""

from __future__ import annotations

from workbench.evaluation.agreement import Agreement
from workbench.evaluation.fact_table import fact_table
from workbench.evaluation.kv_table import KVMemory


def test_texts_are_escaped() -> None:
    assert fact_table({"a < b": "1 & 2"}) == (
        '<table><tr><th style="text-align:left">a &lt; b</th><td>1 &amp; 2</td></tr></table>'
    )


def test_an_agreement_is_told_in_a_few_digits() -> None:
    told = Agreement(0.004889241672834025, 0.96875, 0.99812345, 0.0711111, 23.456789, 23.9, 256)._repr_html_()
    for text in ("96.9 % of 256 positions", "0.004889 nats", ">23.46<", ">23.90<", "0.99812", "7.11 %"):
        assert text in told


def test_a_caches_memory_is_told_for_a_token_and_for_a_full_cache() -> None:
    told = KVMemory("bfloat16", 16384, 34560, 17280)._repr_html_()
    assert "one token, all layers" in told
    assert "34,560 bytes in bfloat16, 17,280 in INT8" in told
    assert "a full cache of 16,384 tokens" in told
    assert "566.2 MB in bfloat16, 283.1 MB in INT8" in told
