"""Tables in Markdown."""

from ldm.evaluation.tables import markdown_table


def test_a_table_has_its_titles_a_rule_and_its_rows():
    table = markdown_table(["name", "score"], [("a", "1"), ("b", "2")])
    assert table.splitlines() == ["| name | score |", "| --- | --- |", "| a | 1 |", "| b | 2 |"]
    assert not table.endswith("\n")
