"""Tables for the terminal."""

from __future__ import annotations

from vitfast.text_table import percent, text_table


def test_words_are_left_and_numbers_right():
    table = text_table(("class", "n"), [("cat", "7"), ("a long name", "12")])
    assert table.splitlines() == ["class         n", "-----------  --", "cat           7", "a long name  12"]


def test_a_table_without_rows_is_its_header():
    assert text_table(("a", "b"), []).splitlines() == ["a  b", "-  -"]


def test_percent():
    assert percent(0.97314) == "97.31 %"
    assert percent(float("nan")) == percent(None) == "-"
