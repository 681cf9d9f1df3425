"""`main.py --check`: everything wrong at once, each with the line that it is written in."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ldm.cli.arguments import parse
from ldm.cli.report.checking import check_everything
from ldm.cli.report.finding import Finding, exit_code_of, ranked
from ldm.cli.report.places import Places
from ldm.cli.rundir import new_run
from ldm.cli.train import main
from tests.cli.runs import first_stage, second_stage, write
from tests.shipped_configs import CONFIGS, ROOT, name_of


def checked(*words, with_costs=False):
    """The report of a command line."""
    args = parse(["--check", "--gpus", "cpu", *words])
    run = new_run(args.logdir, args.name, args.base, args.postfix)
    return check_everything(args, run, with_costs=with_costs)


def line_of(path, key):
    """`FILE:LINE` of a key, by its dotted path."""
    node = yaml.compose(Path(path).read_text())
    mark = node.start_mark
    for name in key.split("."):
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(name)]
            mark = node.start_mark
        else:
            label, node = next(pair for pair in node.value if pair[0].value == name)
            mark = label.start_mark
    return f"{path}:{mark.line + 1}"


def changed(config, key, value):
    """A configuration with one value changed; `...` takes the key away."""
    *above, name = key.split(".")
    part = config
    for each in above:
        part = part[each]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    return config


UNET = "model.params.unet_config.params"
FIRST = "model.params.first_stage_config.params"
TAU = "model.params.cond_stage_config.params"
LOSS = "model.params.lossconfig.params"

# stage, key that is changed, its value, part of the message
ERRORS = [
    (second_stage, "model.target", "ldm.models.diffusion.ddpm.LatentDifusion", "did you mean"),
    (second_stage, f"{UNET}.model_chanels", 32, "did you mean 'model_channels'"),
    (second_stage, f"{UNET}.num_res_blocks", "two", "expected int"),
    (second_stage, f"{UNET}.context_dim", 24, "expected 16"),
    (second_stage, f"{UNET}.in_channels", 5, "of 4 channels"),
    (second_stage, f"{UNET}.out_channels", 3, "of 4 channels"),
    (second_stage, f"{UNET}.num_head_channels", 24, "24"),
    (second_stage, f"{TAU}.n_classes", 7, "24 classes"),
    (second_stage, f"{FIRST}.ckpt_path", "nowhere.ckpt", "no such checkpoint"),
    (second_stage, f"{FIRST}.ddconfig.in_channels", 1, "have 3 channels"),
    (second_stage, "data.params.train.params.size", 17, "17"),
    (second_stage, "data.params.train.params.split", "trainn", "'train'"),
    (second_stage, "data.params.batch_size", 0, "expected 1 or more"),
    (second_stage, "data.params.train.target", "ldm.data.shapes.Shapes", "did you mean"),
    (second_stage, "model.params.monitor", "val/los", "did you mean 'val/loss'"),
    (second_stage, "model.learning_rate", -1.0, "above 0"),
    (second_stage, "model.params.first_stage_key", "picture", "'picture' is no entry"),
    (second_stage, "model.params.conditioning_key", "crosattn", "'crossattn'"),
    (second_stage, "model.params.beta_schedule", "linearr", "'linear'"),
    (second_stage, "lightning.trainer.accumulate_grad_batches", 0, "1 or more"),
    (second_stage, "lightning.trainer.precision", "fp17", "fp17"),
    (second_stage, "lightning.trainer.max_stps", 5, "did you mean 'max_steps'"),
    (second_stage, "lightning.trainer.max_steps", 0, "nothing would be trained"),
    (second_stage, "lightning.callbacks.image_logger.params.max_image", 2, "max_images"),
    (first_stage, "model.params.ddconfig.ch_mult", [], "ch_mult"),
    (first_stage, "model.params.monitor", "val/rec_los", "did you mean 'val/rec_loss'"),
    (first_stage, "lightning.trainer.precision", "16-mixed", "first stage trains in"),
]

# the same, with the severity and the key that is named, where that is another
OTHERS = [
    (second_stage, f"{UNET}.attention_resolutions", [16], "warning", None, "never occurs"),
    (second_stage, f"{FIRST}.embed_dim", 3, "error", f"{UNET}.out_channels", "3 channels"),
    (first_stage, f"{LOSS}.disc_start", 10, "note", None, "never joins"),
    (first_stage, f"{LOSS}.perceptual_weight", 1.0, "error", LOSS, "no weights"),
]
BROKEN = [(*row[:3], "error", None, row[3]) for row in ERRORS] + OTHERS


@pytest.mark.parametrize(
    ("stage", "key", "value", "severity", "named", "said"),
    BROKEN,
    ids=[f"{stage.__name__}-{key.removeprefix('model.params.')}" for stage, key, *_ in BROKEN],
)
def test_a_broken_configuration_is_named_by_its_line(
    stage, key, value, severity, named, said, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = write(tmp_path / "config.yaml", changed(stage(), key, value))
    report = checked("-b", path, "--logdir", str(tmp_path / "logs"))
    expected = line_of(path, named or key)
    found = [each for each in report.findings if each.place == expected]
    assert any(each.severity == severity and said in each.message for each in found), report.text()
    assert report.exit_code == {"error": 2, "warning": 3, "note": 0}[severity]


def test_a_configuration_without_faults_has_none_found(tmp_path):
    for stage in (first_stage, second_stage):
        path = write(tmp_path / f"{stage.__name__}.yaml", stage())
        report = checked("-b", path, "--logdir", str(tmp_path / "logs"), with_costs=True)
        assert [each for each in report.findings if each.severity == "error"] == [], report.text()
    assert not (tmp_path / "logs").exists()


def text_config(tokenizer):
    """A model of captions whose vocabulary is a file."""
    config = yaml.safe_load((ROOT / "configs/tiny/ldm-text.yaml").read_text())
    return changed(config, f"{TAU}.tokenizer", tokenizer)


def test_a_tokenizer_that_is_not_there_is_an_error_and_one_of_the_hub_a_warning(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    for tokenizer, severity in (("nowhere.txt", "error"), ("no-such/tokenizer", "warning")):
        path = write(tmp_path / "config.yaml", text_config(tokenizer))
        report = checked("-b", path)
        place = line_of(path, f"{TAU}.tokenizer")
        (found,) = [each for each in report.findings if each.place == place]
        assert found.severity == severity, report.text()


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    config = second_stage(str(tmp_path / "other.ckpt"))
    path = write(tmp_path / "config.yaml", changed(config, f"{UNET}.model_chanels", 32))
    report = checked("-b", path)
    places = {each.place for each in report.findings if each.severity == "error"}
    assert places == {
        line_of(path, f"{FIRST}.ckpt_path"),
        line_of(path, f"{UNET}.model_chanels"),
    }, report.text()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("model:\n  target: a\n  params: [1,\ndata: {}\n", 5, "not valid YAML"),
        ("model:\n  target: a\ndata:\n  x: 1\n  x: 2\n", 5, "duplicate"),
        ("model:\n  target: a\ndata:\n  x: ${nowhere}\n", 4, "nowhere"),
    ],
    ids=["syntax", "duplicate", "interpolation"],
)
def test_what_yaml_cannot_be_read_from_is_named_by_its_line(text, line, said, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    report = checked("-b", str(path))
    (found,) = report.findings
    assert (found.severity, found.place) == ("error", f"{path}:{line}"), report.text()
    assert said in found.message


def test_several_faults_are_named_at_once_and_each_by_what_set_it_last(tmp_path):
    base = write(tmp_path / "base.yaml", changed(second_stage(), f"{UNET}.context_dim", 24))
    overlay = write(
        tmp_path / "overlay.yaml", {"data": {"params": {"train": {"params": {"split": "trainn"}}}}}
    )
    word = "model.params.first_stage_key=picture"
    report = checked("-b", base, overlay, word, "--max_steps", "0")
    places = {each.place for each in report.findings if each.severity == "error"}
    assert {
        line_of(base, f"{UNET}.context_dim"),
        line_of(overlay, "data.params.train.params.split"),
        "--max_steps",
    } <= places, report.text()
    fixed = changed(second_stage(), f"{UNET}.context_dim", 16)
    report = checked("-b", write(tmp_path / "fixed.yaml", fixed), word)
    assert f"override {word}" in {each.place for each in report.findings}, report.text()


def test_a_key_belongs_to_the_file_that_set_it_last_and_a_list_is_replaced_whole(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("x: &x\n  y: [1, 2]\n  z: 3\nw:\n  <<: *x\n  v: 4\n")
    second.write_text("x:\n  y: [5]\n")
    places = Places([first, second], {"x.z": "override x.z=6"})
    assert places.of("x.y") == places.of("x.y.0") == f"{second}:2"
    assert not places.has("x.y.1")
    assert places.of("x.z") == "override x.z=6"
    assert places.of("w.z") == f"{first}:3"
    assert places.of("w.v.new") == f"{first}:6"


def test_findings_are_ranked_and_the_worst_decides_the_exit_code():
    note, warning, error = (Finding(each, "said") for each in ("note", "warning", "error"))
    assert ranked([note, warning, error, note]) == [error, warning, note]
    assert [exit_code_of(each) for each in ([], [note], [warning, note], [error, warning])] == [
        *(0, 0, 3, 2)
    ]


def test_the_command_says_everything_as_json_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "config.yaml", changed(second_stage(), f"{UNET}.context_dim", 24))
    with pytest.raises(SystemExit) as end:
        main(["-b", path, "--check", "--format", "json", "--gpus", "cpu"])
    assert end.value.code == 2
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == 2
    assert said["findings"][0]["path"] == f"{UNET}.context_dim"
    assert list(tmp_path.iterdir()) == [Path(path)], "a check writes nothing"


FULL = ("latent-diffusion", "autoencoder")
SHIPPED = [
    pytest.param(path, id=name_of(path), marks=[pytest.mark.slow] * (path.parent.name in FULL))
    for path in CONFIGS
]


@pytest.mark.parametrize("path", SHIPPED)
def test_a_shipped_configuration_has_no_fault_but_what_is_to_be_given(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    report = checked("-b", str(path))
    others = [
        each
        for each in report.findings
        if each.severity != "note"
        and "a value is needed here" not in each.message
        and "LPIPS has no weights" not in each.message  # not on this machine
        and "in the hub's cache" not in each.message
        and "there is no `data:` block" not in each.message
        and "never occur" not in each.message  # published: attention that there is none of
        and "would stay untrained" not in each.message  # of configurations for measurements
        and "found neither" not in each.message  # a rate, of configurations for measurements
    ]
    assert others == [], report.text()
    assert {section.title for section in report.sections} >= {"shapes", "parameters"}
