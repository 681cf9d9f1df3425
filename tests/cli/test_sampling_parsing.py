"""What a sampling script says of words that it cannot read: one line, before anything is loaded."""

import pytest

from ldm.cli.exits import EXIT_CONFIG, exit_code
from ldm.cli.sampling.classes import Sample
from ldm.cli.sampling.flags import sampling_parser
from ldm.cli.sampling.parsing import Parser
from ldm.config import ConfigError
from tests.cli.runs import script

SCRIPTS = ("sample", "txt2img", "img2img", "inpaint", "layout2img", "superres", "semantic")


def refused(name, *words):
    """The one line that a script says, on words that it does not take."""
    with pytest.raises(ConfigError) as error:
        script(name)(list(map(str, words)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_misspelt_flag_names_the_nearest_one(name):
    line = refused(name, "RUN", "--stps=4")
    assert line == "unrecognized arguments: --stps=4; did you mean '--steps'?"


def test_what_cannot_be_read_ends_with_one_line_and_without_usage(capfd, caplog_ldm):
    assert exit_code(script("sample"), ["RUN", "--stps", "4"]) == EXIT_CONFIG
    said = "unrecognized arguments: --stps 4; did you mean '--steps'?"
    assert caplog_ldm.messages == [f"error: {said}"]
    assert "usage" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--precision", "fp8"], "--precision: invalid choice: 'fp8' (choose from"),
        (["--classes", "cat"], "--classes: invalid int value: 'cat'"),
        (["--between", 3], "--between: expected 2 arguments"),
        (["--steps"], "--steps: expected one argument"),
        (["--strength", 0.5], "unrecognized arguments: --strength"),  # is for img2img
        (["--ddim_step", 20], "did you mean '--ddim_steps'?"),
        (["another"], "unrecognized arguments: another"),
    ],
)
def test_words_that_cannot_be_read_are_named(words, expected):
    assert expected in refused("sample", "RUN", *words)


@pytest.mark.parametrize(
    ("flag", "value", "whose"),
    [
        ("--weak-scale", 3, "--weak"),
        ("--weak-scale", 2, "--weak"),  # the default
        ("--classifier-scale", 5, "--classifier"),
        ("--clip-scale", 10, "--clip"),
        ("--clip-through", "x0", "--clip"),
    ],
)
def test_what_says_how_another_flag_works_is_refused_without_it(flag, value, whose):
    expected = f"{flag}: is of {whose}, which is not given"
    assert refused("sample", "RUN", flag, value) == expected
    assert refused("sample", "RUN", f"{flag}={value}") == expected
    both = sampling_parser("")
    Sample().add_flags(both)
    args = both.parse_intermixed_args(["RUN", flag, str(value), f"{whose}=DIR"])
    assert getattr(args, whose.removeprefix("--")) == "DIR"


def test_a_flag_of_another_script_is_unknown_with_or_without_what_it_is_of():
    line = refused("layout2img", "RUN", "--clip-scale", 10)
    assert line.startswith("unrecognized arguments: --clip-scale 10")


@pytest.mark.parametrize("beginning", ["--ste", "--prec", "--samp", "--vanilla", "--skip"])
def test_the_beginning_of_a_flag_is_no_flag(beginning):
    assert refused("sample", "RUN", beginning, 4).startswith(f"unrecognized arguments: {beginning}")


def test_what_processes_tell_each_other_is_not_suggested():
    assert "--worker" not in refused("sample", "RUN", "--workr=3")


def test_help_ends_as_it_did(capsys):
    with pytest.raises(SystemExit) as end:
        Parser(prog="draw").parse_args(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: draw")
