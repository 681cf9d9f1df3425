"""Configurations and command lines that are wrong as a user, or a stranger, makes them."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

from ldm.cli.arguments import TRAINER_FLAGS
from tests.cli.runs import first_stage, second_stage
from tests.shipped_configs import ROOT, plain

Config = dict[str, Any]
Place = tuple[Any, ...]

_HUGE = 10**12
NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, _HUGE, -_HUGE, 10**40, 0.0, -0.5, 0.5, 1.5, 1e300, 1e-300]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = [
    *("", " ", "0", "-1", "1e-4", "nan", "true", "null", "???", "\n", "a b", "ä 日本 🙂"),
    *("../../outside", "/etc/passwd", "/nowhere", ".", "~nobody/x", "x\0y", "a" * 5000, "CON"),
    *("${model}", "${model.params}", "${nope}", "${oc.env:HOME}", "${oc.env:NOT_SET}"),
    *("${oc.decode:'[1'}", "${oc.create:{a: 1}}", "${", "${.}", "${..}", "${eval:1}", "a${b"),
    *(
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "main.main",
    ),
    *("torch.nn.Identity", "ldm.nets.unet.UNetModel", "ldm.data.shapes.ShapesDataset"),
    *("ldm.models.diffusion.ddpm.LatentDiffusion", "ldm.models.autoencoder.AutoencoderKL"),
    *("ldm.conditioning.labels.ClassEmbedder", "ldm.log.os.system", "ldm.nets.unt.UNetModel"),
    *("__is_first_stage__", "__is_unconditional__", "train", "image", "caption", "class_label"),
]
OTHERS: list[Any] = [
    *(None, True, False, [], {}, [0], [1, 2], [[1]], ["a"], [None], [math.nan], [_HUGE], [-1, 0]),
    *({"a": 1}, {0: 1}, {"": 1}, {"target": "os.system", "params": {"command": "touch ran"}}),
    *({"target": "torch.nn.Identity"}, {"target": None}, {"params": {}}, {"target": ["x"]}),
    {"target": "ldm.data.shapes.ShapesDataset", "params": {"size": 16, "length": 4}},
    {"target": "torch.nn.Identity", "params": []},
    {"target": "torch.nn.Identity", "params": {0: 1}},
    {"target": "torch.optim.AdamW", "params": {"lr": "x"}},
]
VALUES = st.one_of(*map(st.sampled_from, (NUMBERS, TEXTS, OTHERS)))

# pieces of YAML that are no harmless data
RAW = [
    "x: !!python/object/apply:os.system ['touch ran']",
    "x: !!python/object/new:subprocess.Popen [['touch', 'ran']]",
    "x: !!python/name:os.system",
    "x: !!python/module:os",
    "x: !!binary aGVsbG8=",
    "x: !unknown 1",
    "model: &a [*a]",
    "&a x: *a",
    "x: *nowhere",
    "<<: {model: 1}",
    "model: {",
    "\tmodel: 1",
    "model: 1",
    "? [a, b]\n: 1",
    "2020-01-01: 1",
    "x: 2020-01-01",
    "null: 1",
    "true: 1",
    "1.5: 1",
    "x: " + "[" * 3000,
    "x: " + "1" * 5000,
    "--- {}\n--- {}",
    "%YAML 9.9",
    "\x07",
    "x: 'unfinished",
    "lightning: {trainer: {max_steps: 1}}",
]


def bases() -> list[Config]:
    """Configurations that can be trained, each of another kind."""
    tiny = [plain(path) for path in sorted((ROOT / "configs" / "tiny").glob("*.yaml"))]
    return [first_stage(), second_stage(), *tiny]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """The place of every value inside a configuration, mappings and lists among them."""
    pairs = value.items() if isinstance(value, dict) else ()
    pairs = enumerate(value) if isinstance(value, list) else pairs
    for key, item in pairs:
        yield (*place, key)
        yield from places(item, (*place, key))


def at(config: Config, place: Place) -> Any:
    """The value at a place."""
    value: Any = config
    for key in place:
        value = value[key]
    return value


@st.composite
def _edited(draw: st.DrawFn, config: Config) -> Config:
    """The configuration after one change at one place."""
    kinds = ["replace", "number", "copy", "delete", "rename", "nest", "add"]
    how = draw(st.sampled_from([*kinds, "like", "like", "like", "like"]))
    there = list(places(config))
    if not there:
        return config
    place = draw(st.sampled_from(there))
    parent, key = at(config, place[:-1]), place[-1]
    value = parent[key]
    if how == "delete":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        names = [str(each[-1]) for each in there]
        named = draw(st.sampled_from([*names, f"{key}s", str(key)[1:], "a.b", "target", "params"]))
        parent[named] = parent.pop(key)
    elif how == "copy":
        parent[key] = copy.deepcopy(at(config, draw(st.sampled_from(there))))
    elif how == "add" and isinstance(value, dict | list):
        _add(value, draw(st.sampled_from(["x", "target", "ckpt_path", ""])), draw(VALUES))
    else:
        parent[key] = copy.deepcopy(draw(_instead(how, key, value, config)))
    return config


def _instead(how: str, key: Any, value: Any, config: Config) -> st.SearchStrategy[Any]:
    """What may stand in the place of a value."""
    if how == "like":
        return st.sampled_from(_like(value, config))
    if how == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        near = [value * 2, value + 1, -value, value / 3, value * 1000] if is_number else NUMBERS
        return st.sampled_from([*near, *NUMBERS])
    if how == "nest":
        inside: list[Any] = [[value], {str(key): value}, {"params": value}]
        if isinstance(value, dict | list) and value:
            inside.append(next(iter(value.values() if isinstance(value, dict) else value)))
        return st.sampled_from(inside)
    return VALUES


def _like(value: Any, config: Config) -> list[Any]:
    """Other values of the same type, which no check of types refuses."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [number for number in NUMBERS if isinstance(number, int)] + [value + 1, 2 * value]
    if isinstance(value, float):
        return [number for number in NUMBERS if isinstance(number, float)] + [-value, 10 * value]
    if isinstance(value, str):
        return [at(config, p) for p in places(config) if isinstance(at(config, p), str)] + TEXTS
    if isinstance(value, list):
        numbers = [[number] * max(1, len(value)) for number in NUMBERS]
        return [
            [],
            value * 2,
            value[::-1],
            value[1:],
            [*value, 0],
            [*value, "a"],
            [value],
            *numbers,
        ]
    return [{}, {key: None for key in value or {}}, dict(list((value or {"a": 1}).items())[1:])]


def _add(value: Any, key: str, item: Any) -> None:
    if isinstance(value, dict):
        value[key] = copy.deepcopy(item)
    else:
        value.append(copy.deepcopy(item))


@st.composite
def texts(draw: st.DrawFn, configs: list[Config]) -> str:
    """A configuration file: one of these after one to three changes, or with a piece of YAML."""
    config = copy.deepcopy(draw(st.sampled_from(configs)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        config = draw(_edited(config))
    # without aliases: what was copied is written twice
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0:
        raw = draw(st.sampled_from(RAW))
        text = f"{text}\n{raw}\n" if draw(st.booleans()) else f"{raw}\n{text}\n"
    if draw(st.integers(0, 29)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_FLAGS = [
    *(f"--{name}" for name in TRAINER_FLAGS),
    *("-b", "--base", "--test", "--no-test", "-r", "--resume", "--resume_from_checkpoint", "-n"),
    *("--name", "-f", "--postfix", "-p", "--project", "--gpus", "-s", "--seed", "--scale_lr"),
    *("--compile", "--trust", "--nothing", "--max-steps", "-x", "--", "-"),
]
# words that would train, stop in a debugger or print the help are left out
_WORDS = [*TEXTS, "1", "0,", "cpu", "1e400", "[1, 2]", "{a: 1}", "bf16-mixed", "64-true", "a=b"]


@st.composite
def words(draw: st.DrawFn, configs: list[Config]) -> list[str]:
    """Words behind the configuration: flags with and without values, and overrides."""
    keys = [".".join(map(str, place)) for place in places(configs[0])]
    keys += ["", ".", "a..b", "model.params.x.y.z", "data.params.train.params.0", "lightning"]
    found: list[str] = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        how = draw(st.sampled_from(["flag", "flag=", "pair", "override", "override", "word"]))
        value = str(draw(st.one_of(st.sampled_from(_WORDS), st.sampled_from(NUMBERS))))
        flag = draw(st.sampled_from(_FLAGS))
        found += {
            "flag": [flag],
            "flag=": [f"{flag}={value}"],
            "pair": [flag, value],
            "override": [f"{draw(st.sampled_from(keys))}={value}"],
            "word": [value],
        }[how]
    return found
