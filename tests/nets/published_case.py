"""A network of a reference case, built by its published class path and filled by rule."""

from importlib import import_module

from tests.reference import fill, key_crc32


def build(case):
    """The network of a case in eval mode, its parameter names and shapes checked."""
    net = fill(instantiate(case.spec["constructor"])).eval()
    assert key_crc32(net) == case.spec["rule_filled"][0]["key_crc32"]
    return net


def instantiate(config):
    """The object of {target, params}; a parameter may be such a mapping too."""
    module, name = config["target"].rsplit(".", 1)
    module = module.replace("taming.modules.discriminator.model", "ldm.nets.discriminator")
    params = {
        key: instantiate(value) if isinstance(value, dict) and "target" in value else value
        for key, value in config["params"].items()
    }
    return getattr(import_module(module), name)(**params)


def inputs(case):
    """The inputs of a case by name, in the order of its description; without the cotangent."""
    return {name: case.input(name) for name in case.spec["inputs"] if name != "g"}
