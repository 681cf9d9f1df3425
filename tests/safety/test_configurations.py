"""Configurations that are attacks: what they name is not called, and what they ask for not done."""

import copy
import os

import pytest
import yaml

from ldm.cli.rundir import new_run
from ldm.cli.train import main
from ldm.config import ConfigError, check, instantiate_from_config, load, locate, targets, to_plain
from tests.cli.runs import first_stage, second_stage, write
from tests.safety.watching import watched

# each is an attempt of another kind to reach something that acts
ACTING = [
    *("os.system", "posix.system", "subprocess.Popen", "subprocess.run", "builtins.eval"),
    *("builtins.exec", "builtins.open", "shutil.rmtree", "pty.spawn", "pdb.run", "runpy.run_path"),
    *("importlib.import_module", "ctypes.CDLL", "socket.socket", "http.server.HTTPServer"),
    *("ldm.log.os.system", "ldm.log.os", "ldm.cli.train.pdb.run", "ldm.cli.train.pdb"),
    *("ldm.cli.train.train", "ldm.cli.train.main", "ldm.config.trust", "ldm.util.os.system"),
    *("ldm.config.instantiate_from_config", "ldm.util.instantiate_from_config"),
    *("ldm.io.unpickle.unpickle", "ldm.io.checkpoint.load_state", "ldm.data.mapped.write_arrays"),
    *("ldm.benchmark.measure.peak_memory", "ldm.benchmark.measure.subprocess.Popen"),
    *("ldm.preparation.job.prepare", "ldm.preparation.archives.members", "ldm.hashing.hash64"),
    *("ldm.data.shards.os.remove", "ldm.data.shards.os", "ldm.data.shards.Path"),
    *("ldm.nets.unet.UNetModel.__init__", "ldm.nets.unet.__builtins__.eval"),
    *("ldm.nets.unet.UNetModel.forward", "ldm.nets.unet.UNetModel.load_state_dict"),
    *("ldm.__loader__.get_data", "ldm.nets.__path__", "ldm.nets.unet.torch.load"),
    *("torch.os.system", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load"),
    *("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline"),
    *("torch.ops.load_library", "torch.ops.aten.add", "torch.classes.load_library"),
    *("torch.distributed.run.main", "torch.package.PackageImporter", "torch.compile"),
    *("torch.nn.modules.module.torch.load", "torch.nn.functional.relu", "torch.nn.init.normal_"),
    *("torch.nn.Parameter", "torch.optim.Optimizer.__reduce__", "torch.nn.modules.os.system"),
    *("transformers.pipeline", "transformers.Pipeline", "transformers.TrainingArguments"),
    *("transformers.cli.serve.Serve", "transformers.models.rag.retrieval_rag.LegacyIndex"),
    *("transformers.dynamic_module_utils.get_class_from_dynamic_module",),
    *("pytorch_lightning.Trainer", "pytorch_lightning.callbacks.callback.Any"),
    *("pytorch_lightning.LightningModule.load_from_checkpoint", "webdataset.WebDataset"),
    *("numpy.load", "pickle.loads", "yaml.unsafe_load", "omegaconf.OmegaConf.load", "joblib.load"),
    *("main.main", "scripts.tasks.tasks", "scripts.sample.sample", "setup.setup"),
    *("ldm.nets.unet:UNetModel", "ldm/nets/unet", "../ldm.nets", "ldm.nets.unet.UNetModel\n", ""),
]


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """Nothing runs, nothing is written outside of the directory, and no canary is left in it."""
    monkeypatch.setattr(targets, "_trusted", set())
    monkeypatch.delenv("LDM_TRUST", raising=False)
    before = sorted(tmp_path.rglob("*"))
    with watched(tmp_path) as seen:
        yield tmp_path
    assert seen == []
    assert [path for path in tmp_path.rglob("*") if path.name == "ran"] == before


@pytest.mark.parametrize("target", ACTING)
def test_what_acts_is_refused_wherever_a_configuration_names_it(quiet, target):
    call = {"target": target, "params": {"command": f"touch {quiet / 'ran'}"}}
    with pytest.raises(ConfigError):
        locate(target)
    with pytest.raises(ConfigError):
        instantiate_from_config(call)
    for place in (
        "model",
        "model.params.cond_stage_config",
        "data.params.train",
        "lightning.logger",
    ):
        config = second_stage()
        *parents, last = place.split(".")
        parent = config
        for name in parents:
            parent = parent[name]
        parent[last] = copy.deepcopy(call)
        with pytest.raises(ConfigError, match=place.replace(".", r"\.")):
            check(config)


def test_a_class_of_a_library_is_built_when_it_is_of_the_kind_that_is_asked_for(quiet):
    names = ("torch.nn.Identity", "torchmetrics.MeanMetric", "torchvision.transforms.ToTensor")
    assert [locate(name).__name__ for name in names] == ["Identity", "MeanMetric", "ToTensor"]
    more = ("callbacks.EarlyStopping", "loggers.CSVLogger", "strategies.DDPStrategy")
    assert all(locate(f"pytorch_lightning.{name}") for name in more)


TAGS = [
    "!!python/object/apply:os.system ['touch ran']",
    "!!python/object/new:os.system ['touch ran']",
    "!!python/object/new:subprocess.Popen [['touch', 'ran']]",
    "!!python/name:os.system ''",
    "!!python/module:os ''",
    "!!python/object:builtins.object {}",
    "!!python/tuple [1]",
    "!Path x",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_of_yaml_makes_no_object(quiet, monkeypatch, tag):
    monkeypatch.chdir(quiet)
    (quiet / "c.yaml").write_text(f"model: {{x: {tag}}}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: line 1: not valid YAML"):
        load(["c.yaml"])
    with pytest.raises(ConfigError, match="not valid YAML"):
        load([], [f"model.x={tag}"])


@pytest.mark.parametrize(
    "text",
    [
        "${eval:1}",
        "${python:os.system('touch ran')}",
        "${oc.decode:'!!python/object/apply:os.system [touch ran]'}",
        "${oc.env:SURELY_NOT_SET}",
        "${${oc.env:PATH}}",
        "${x}",
        "${",
    ],
)
def test_an_interpolation_computes_nothing(quiet, monkeypatch, text):
    monkeypatch.chdir(quiet)
    with pytest.raises(ConfigError):
        to_plain(load([], [f"x='{text}'" if "'" not in text else f'x="{text}"']))


def _laughs(count):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, count)]
    return "\n".join(lines)


ODD = {
    "a part of itself": "model: &a [*a]",
    "references that double": _laughs(12),
    "nested": "x: " + "[" * 3000,
    "a long number": "x: " + "1" * 5000,
    "NUL": "x: \0",
    "bytes": "x: \xff".encode("latin-1"),
    "two documents": "--- {}\n--- {}",
    "a list": "- 1",
    "no keys": "? [a, b]\n: 1",
    "a key twice": "model: 1\nmodel: 2",
}


@pytest.mark.parametrize("what", ODD)
def test_a_file_that_is_no_configuration_is_one_error_in_no_time(quiet, what):
    path = quiet / "c.yaml"
    content = ODD[what]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load([path])


def test_the_command_refuses_an_attack_with_one_line_and_builds_nothing(quiet, caplog_ldm):
    config = first_stage()
    command = f"touch {quiet / 'ran'}"
    config["data"]["params"]["train"] = {"target": "os.system", "params": {"command": command}}
    assert main(["-b", write(quiet / "c.yaml", config), "-t", "-l", str(quiet / "logs")]) == 2
    assert "data.params.train.target: os.system: refused" in caplog_ldm.text
    assert not (quiet / "logs").exists()


@pytest.mark.parametrize("part", ["../x", "a/b", "/etc/x", "x\0y", "a\nb", "x" * 300, "\udcff"])
def test_the_name_of_a_run_stays_in_its_directory(quiet, part):
    for name, postfix in ((part, ""), (None, part)):
        with pytest.raises(ConfigError, match="--name"):
            new_run(str(quiet), name, ["c.yaml"], postfix)


def test_the_configuration_that_a_run_records_is_plain(quiet):
    config = yaml.safe_load((quiet / write(quiet / "c.yaml", first_stage())).read_text())
    assert "!!" not in yaml.dump(to_plain(load([quiet / "c.yaml"])))
    assert config["model"]["target"] == "ldm.models.autoencoder.AutoencoderKL"


def test_the_environment_is_read_only_where_a_configuration_asks_for_it(quiet, monkeypatch):
    monkeypatch.setenv("LDM_CANARY", "told")
    before = dict(os.environ)
    config = to_plain(load([], ["x=${oc.env:LDM_CANARY}", "y=LDM_CANARY", "z=$LDM_CANARY"]))
    assert config == {"x": "told", "y": "LDM_CANARY", "z": "$LDM_CANARY"}
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "override",
    [
        "model.params.unet_config.params.num_res_blocks=1000000000",
        "model.params.unet_config.params.num_res_blocks=[1000000000,1]",
        "model.params.unet_config.params.transformer_depth=1000000000",
        "model.params.timesteps=1000000000",
        "data.params.train.params.size=1000000000",
    ],
)
def test_numbers_that_would_take_hours_or_all_memory_are_refused(quiet, caplog_ldm, override):
    words = [override, "--no-test", "-l", str(quiet / "logs")]
    assert main(["-b", write(quiet / "c.yaml", second_stage()), *words]) == 2
    name = override.partition("=")[0].rpartition(".")[2]
    assert name in caplog_ldm.text
    assert "expected" in caplog_ldm.text


def test_what_is_no_data_set_is_refused(quiet, caplog_ldm):
    config = first_stage()
    config["data"]["params"]["train"] = {"target": "torch.nn.Identity"}
    assert main(["-b", write(quiet / "c.yaml", config), "-l", str(quiet / "logs")]) == 2
    assert "data.params.train.target: Identity is no data set" in caplog_ldm.text
