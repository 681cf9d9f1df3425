import pytest

from ldm.cli.exits import EXIT_CONFIG
from tests.preparation.scripts import run
from tests.shipped_configs import ROOT
from tests.test_readme import commands

COMMANDS = commands(ROOT / "docs" / "preparing.md")


def test_the_page_has_commands_of_every_script():
    scripts = {path.name for path in (ROOT / "scripts").glob("prepare_*.py")}
    assert {words[1].removeprefix("scripts/") for words in COMMANDS} == scripts


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_lacks_nothing_but_the_archive(
    words, tmp_path, monkeypatch, caplog_ldm
):
    monkeypatch.chdir(tmp_path)
    # words that the script does not know would raise SystemExit
    script = words[1].removeprefix("scripts/").removesuffix(".py")
    assert run(script, *words[2:]) == EXIT_CONFIG
    assert "SOURCE: there is no " in caplog_ldm.text
    assert not list(tmp_path.iterdir())
