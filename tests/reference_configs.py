"""The published configurations, put back from facts into the `{target, params}` form of YAML.

`tests/published_configs/<name>.json` holds what each of the 33 configurations says, re-arranged
by subject; the names of the classes are part of the published interface.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent / "published_configs"

NAMES = sorted(path.stem for path in ROOT.glob("*.json"))

# subject in the facts -> parameter of the model that carries it
_PARTS = {
    "denoiser": "unet_config",
    "first_stage": "first_stage_config",
    "conditioner": "cond_stage_config",
    "loss": "lossconfig",
}


def published_config(name):
    """A published configuration as its YAML file gives it: blocks model, data and lightning."""
    facts = json.loads((ROOT / f"{name}.json").read_text())
    training = facts.get("training", {})
    model = _described(facts)
    if "monitor" in training:
        model["params"]["monitor"] = training["monitor"]
    if "lr_scheduler" in training:
        model["params"]["scheduler_config"] = _described(training["lr_scheduler"])
    config = {"model": {"base_learning_rate": training["base_learning_rate"], **model}}
    if "data" in facts:
        config["data"] = _data(facts["data"], training)
    lightning = {key: training[key] for key in ("trainer",) if key in training}
    if "callbacks" in training:
        callbacks = training["callbacks"].items()
        lightning["callbacks"] = {key: _described(callback) for key, callback in callbacks}
    if lightning:
        config["lightning"] = lightning
    return config


def targets(value):
    """Every target that a configuration names, in order, with repetitions."""
    if isinstance(value, dict):
        own = [value["target"]] if isinstance(value.get("target"), str) else []
        return own + [found for item in value.values() for found in targets(item)]
    if isinstance(value, list):
        return [found for item in value for found in targets(item)]
    return []


def _described(facts):
    """The class of a part and its parameters; a plain string is one of the published markers."""
    if isinstance(facts, str):
        return facts
    params = {}
    for subject, parameter in _PARTS.items():
        if subject in facts:
            params[parameter] = _described(facts[subject])
    if "network" in facts:
        params["ddconfig"] = facts["network"]
    for subject in ("arguments", "diffusion", "conditioning", "other_arguments"):
        params.update(facts.get(subject, {}))
    return {"target": facts["class"], "params": params}


def _data(facts, training):
    params = {
        key: training[key] for key in ("batch_size", "num_workers", "wrap") if key in training
    }
    params.update({split: _described(part) for split, part in facts["splits"].items()})
    return {"target": facts["class"], "params": params}
