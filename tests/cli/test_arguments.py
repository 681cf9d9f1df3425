import inspect
import re

import pytest
from pytorch_lightning import Trainer

from ldm.cli.arguments import TRAINER_FLAGS, Devices, parse, parse_devices
from ldm.config import ConfigError

# what the command line makes itself, or what is an object that no word can stand for
OURS = {"callbacks", "logger", "plugins", "use_distributed_sampler", "model_registry"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,", Devices("gpu", [0])),
        ("0,1", Devices("gpu", [0, 1])),
        ("1,3,", Devices("gpu", [1, 3])),
        ("2", Devices("gpu", 2)),
        ("-1", Devices("gpu", -1)),
        ("cpu", Devices("cpu", 1)),
        ("0", Devices("cpu", 1)),
    ],
)
def test_gpus_are_given_as_indices_a_count_all_or_none(text, expected):
    assert parse_devices(text) == expected
    assert parse(["--gpus", text]).gpus == text
    assert parse([f"--gpus={text}"]).gpus == text


@pytest.mark.parametrize("text", ["one", "0;1", "0,x", "-2", "1,1", "1.5", "cuda"])
def test_gpus_refuse_anything_else(text):
    with pytest.raises(ConfigError, match="--gpus"):
        parse([f"--gpus={text}"])


def test_every_argument_of_the_trainer_is_a_flag():
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert arguments - set(TRAINER_FLAGS) <= OURS
    assert set(TRAINER_FLAGS) <= arguments


@pytest.mark.parametrize("name", TRAINER_FLAGS)
def test_a_flag_of_the_trainer_takes_a_value_in_any_form(name):
    assert parse([f"--{name}", "7"]).trainer[name] in (7, "7")
    assert parse([f"--{name}=7"]).trainer[name] in (7, "7")
    assert parse([f"--{name}"]).trainer[name] is True
    assert name in parse([f"--{name.replace('_', '-')}", "7"]).trainer
    assert name not in parse([]).trainer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gradient_clip_val", "1e-3"], {"gradient_clip_val": 1e-3}),
        (["--limit_val_batches", "0.5"], {"limit_val_batches": 0.5}),
        (["--precision", "bf16-mixed"], {"precision": "bf16-mixed"}),
        (["--max_steps", "-1"], {"max_steps": -1}),
        (["--max_time", "12:00:00:00"], {"max_time": "12:00:00:00"}),
        (["--deterministic", "false"], {"deterministic": False}),
        (["--devices", "0,1"], {"devices": "0,1"}),
    ],
)
def test_flags_of_the_trainer_are_typed(words, expected):
    trainer = parse(words).trainer
    assert trainer == expected
    assert [type(value) for value in trainer.values()] == [type(v) for v in expected.values()]


def test_the_defaults_are_the_published_ones():
    args = parse([])
    assert (args.train, args.scale_lr, args.logdir, args.postfix) == (False, True, "logs", "")
    assert (args.seed, args.name, args.resume, args.debug, args.test) == (None,) * 3 + (False, None)


@pytest.mark.parametrize("flag", ["-t", "--train", "-t=true", "--train=1", "-tyes"])
def test_a_switch_is_true_with_or_without_a_value(flag):
    assert parse([flag.replace("-t=", "-t")]).train


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        (["--train", "false"], "train", False),
        (["--scale_lr", "False"], "scale_lr", False),
        (["--scale-lr", "no"], "scale_lr", False),
        (["--no-test"], "test", False),
        (["--no-test", "False"], "test", None),
        (["--test"], "test", True),
        (["--test", "false"], "test", False),
        (["-d"], "debug", True),
        (["-s", "5"], "seed", 5),
        (["--seed=0"], "seed", 0),
        (["-n", "mine"], "name", "mine"),
        (["-n"], "name", ""),
        (["-f", "_x"], "postfix", "_x"),
        (["-l", "elsewhere"], "logdir", "elsewhere"),
        (["-p", "anything"], "postfix", ""),
        (["--auto-resume", "-n", "x"], "auto_resume", True),
        (["--auto_resume=no"], "auto_resume", False),
        (["--compile"], "compile", True),
        (["-r", "logs/run"], "resume", "logs/run"),
        (["--resume_from_checkpoint", "a.ckpt"], "resume_from_checkpoint", "a.ckpt"),
        (["--trust", "mine", "--trust", "yours"], "trust", ["mine", "yours"]),
        (["-b", "a.yaml", "b.yaml"], "base", ["a.yaml", "b.yaml"]),
        (["-b", "a.yaml", "-t", "--base", "b.yaml"], "base", ["a.yaml", "b.yaml"]),
    ],
)
def test_the_published_flags_are_understood(words, field, expected):
    assert getattr(parse(words), field) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["-b", "a.yaml", "-t", "model.x=1", "data.y.0=[1, 2]"],
        ["-b", "a.yaml", "model.x=1", "data.y.0=[1, 2]", "-t"],
        ["model.x=1", "-t", "data.y.0=[1, 2]", "-b", "a.yaml"],
    ],
)
def test_overrides_may_stand_anywhere(words):
    args = parse(words)
    assert args.base == ["a.yaml"]
    assert args.train
    assert args.overrides == ["model.x=1", "data.y.0=[1, 2]"]


def test_a_name_may_look_like_an_override():
    args = parse(["-n", "lr.base=1e-4", "-t"])
    assert (args.name, args.overrides) == ("lr.base=1e-4", [])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_step", "3"], "did you mean --max_steps"),
        (["--bases", "x"], "did you mean --base"),
        (["--weights_summary", "full"], "--enable_model_summary"),
        (["-q"], "unknown flag -q"),
        (["stray"], "'stray': expected a flag, or an override"),
        (["-t", "perhaps"], "neither true nor false"),
        (["-s", "many"], "--seed"),
        (["-s", "-1"], "--seed -1: expected 0"),
        (["-n", "x", "-r", "y"], "-r/--resume"),
        (["-r", "x", "--resume_from_checkpoint", "y"], "--resume_from_checkpoint"),
        (["--auto-resume"], "give one with -n NAME"),
        (["--auto-resume", "-r", "y"], "-r y names it"),
        (["--auto-resume", "-n", "a/b"], "expected no / in -n and -f"),
        (["--test", "--no-test"], "--no-test"),
        (["--gpus", "0,", "--accelerator", "cpu"], "--gpus and --accelerator both say where"),
        (["--gpus", "2", "--devices", "2"], "--gpus and --devices both say where"),
        (["--precision", "[1"], "not valid YAML"),
    ],
)
def test_a_wrong_command_line_is_explained(words, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        parse(words)


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    flags = [*TRAINER_FLAGS, "base", "train", "no-test", "resume", "scale_lr", "gpus", "trust"]
    assert [flag for flag in flags if f"--{flag}" not in shown] == []
