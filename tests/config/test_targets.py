"""Which dotted paths a configuration may name, and what it is told about the others."""

import sys

import pytest
import torch

from ldm.config import ConfigError, locate, targets, trust
from ldm.nets.unet import UNetModel


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty current directory that Python does not search, as when a script is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def trusted(monkeypatch):
    monkeypatch.setattr(targets, "_trusted", set())
    monkeypatch.delenv("LDM_TRUST", raising=False)


def refusal(target):
    with pytest.raises(ConfigError) as caught:
        locate(target)
    return str(caught.value)


def test_a_class_of_ours_is_found():
    assert locate("ldm.nets.unet.UNetModel") is UNetModel


@pytest.mark.parametrize(
    ("target", "found"),
    [("torch.nn.Identity", torch.nn.Identity), ("torch.optim.AdamW", torch.optim.AdamW)],
)
def test_classes_of_allowed_libraries_are_found(target, found):
    assert locate(target) is found


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "functools.partial",
        "importlib.import_module",
        "pathlib.Path",
        "shutil.rmtree",
        "ldm.config.os.system",
        "ldm.config.targets.os",
        "ldm.config.targets.Path",
        "ldm.config.trust",
        "ldm.config.targets.trust",
        "ldm.config.instantiate_from_config",
        "ldm.published.current",
        "ldm.log.log",
        "ldm.log.logging",
        "ldm.nets.unet.nn",
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.nn.functional.relu",
        "torch.nn.init.normal_",
        "torch.nn.modules.module.torch.load",
        "transformers.pipeline",
        "numpy.load",
        "pickle.loads",
        "yaml.unsafe_load",
    ],
)
def test_what_could_run_commands_or_act_is_refused(target, trusted):
    assert target in refusal(target)


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "builtins.eval"])
def test_pythons_own_library_is_refused_even_when_trusted(target, trusted, monkeypatch):
    package = target.split(".")[0]
    with pytest.raises(ConfigError, match="cannot be trusted"):
        trust(package)
    monkeypatch.setenv("LDM_TRUST", package)
    assert "Python's own library" in refusal(target)


def test_functions_of_an_allowed_library_stay_refused_when_it_is_trusted(trusted):
    trust("torch")
    assert "only classes" in refusal("torch.load")


@pytest.mark.parametrize(
    "target", ["ldm", "", "ldm.nets.unet.__doc__", "ldm.nets..x", "ldm/nets.x", "ldm._x.y", 5, None]
)
def test_what_is_no_dotted_path_is_refused(target):
    assert refusal(target).startswith(f"{target!r}: expected a dotted path")


def test_an_untrusted_package_is_refused_with_both_ways_to_trust_it(trusted):
    message = refusal("einops.layers.torch.Rearrange")
    assert "--trust einops" in message
    assert "LDM_TRUST=einops" in message


def test_an_untrusted_package_is_not_imported_while_that_is_decided(trusted, project):
    library = project / "site-packages"
    (library / "evil").mkdir(parents=True)
    (library / "evil" / "__init__.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(library))
    assert "evil is not a trusted package" in refusal("evil.Thing")
    assert "evil" not in sys.modules


@pytest.mark.parametrize("by", ["call", "environment"])
def test_a_trusted_package_may_be_named(trusted, monkeypatch, by):
    if by == "call":
        trust("einops")
    else:
        monkeypatch.setenv("LDM_TRUST", "other, einops")
    assert locate("einops.layers.torch.Rearrange").__name__ == "Rearrange"
    assert locate("einops.rearrange").__name__ == "rearrange"


def test_trusting_a_package_does_not_trust_one_whose_name_begins_alike(trusted):
    trust("ein")
    assert "not a trusted package" in refusal("einops.rearrange")


def test_modules_under_the_current_directory_may_be_named(project):
    (project / "mine").mkdir()
    (project / "mine" / "nets.py").write_text("class Net: ...\ndef make(): ...\n")
    assert locate("mine.nets.Net").__module__ == "mine.nets"
    assert locate("mine.nets.make").__name__ == "make"


@pytest.mark.parametrize(
    "code", ["from os import system", "import os\nsystem = os.system", "system = eval"]
)
def test_what_a_local_module_imported_is_refused(project, code):
    (project / "carrier.py").write_text(code)
    assert "Python's own library" in refusal("carrier.system")


def test_what_a_local_module_took_from_an_untrusted_package_is_refused(project, trusted):
    (project / "borrower.py").write_text("from einops import rearrange")
    assert "einops is not a trusted package" in refusal("borrower.rearrange")


@pytest.mark.parametrize("place", ["env/lib/python3.11/site-packages", "lib/dist-packages"])
def test_an_environment_under_the_current_directory_is_not_the_users_code(project, trusted, place):
    (project / place).mkdir(parents=True)
    (project / place / "installed.py").write_text("class Thing: ...")
    sys.path.insert(0, str(project / place))
    assert "installed is not a trusted package" in refusal("installed.Thing")


def test_a_directory_elsewhere_on_pythons_path_is_not_trusted(project, trusted, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "foreign.py").write_text("class Thing: ...")
    sys.path.insert(0, str(elsewhere))
    assert "foreign is not a trusted package" in refusal("foreign.Thing")


def test_a_local_file_named_like_a_loaded_module_opens_no_door(project):
    (project / "os.py").write_text("class Thing: ...")
    assert "Python's own library" in refusal("os.system")


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("ldm.nets.unet.UNetModle", "did you mean 'UNetModel'?"),
        ("ldm.nets.unt.UNetModel", "there is no module ldm.nets.unt; did you mean 'unet'?"),
        ("ldm.nts.unet.UNetModel", "there is no module ldm.nts; did you mean 'nets'?"),
        ("ldm.nets.unet.UNetModel.forward", "there is no module ldm.nets.unet.UNetModel"),
        ("torch.nn.Idntity", "did you mean 'Identity'?"),
    ],
)
def test_a_misspelt_target_is_refused_with_the_nearest_name(target, hint):
    message = refusal(target)
    assert target in message
    assert hint in message


def test_a_module_whose_own_import_fails_says_why(project):
    (project / "broken.py").write_text("import surely_not_there")
    assert "No module named 'surely_not_there'" in refusal("broken.Thing")


def test_a_target_that_was_never_released_says_what_to_use():
    message = refusal("ldm.data.openimages.FullOpenImagesTrain")
    assert "never released" in message
    assert "ldm.data.folder.ImageFolder" in message
