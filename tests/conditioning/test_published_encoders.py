"""Encoders of the condition against the reference vectors."""

import pytest
import torch
from transformers import CLIPTextConfig

from ldm.conditioning.text import FrozenCLIPEmbedder
from ldm.config import instantiate_from_config
from tests.reference import Case, cases, fill, key_crc32

BY_TOKENS = [n for n in cases("f_encoders") if n.startswith(("bert_", "transformerembedder"))]


def built(case, params=None):
    """The encoder of a case by its published path, with weights by rule."""
    target = case.spec["constructor"]["target"]
    params = case.params if params is None else params
    return fill(instantiate_from_config({"target": target, "params": params})).eval()


def checked(case, module, index=0):
    assert key_crc32(module) == case.spec["rule_filled"][index]["key_crc32"]
    return module


@pytest.mark.parametrize("name", BY_TOKENS)
@torch.no_grad()
def test_text_embedders_match_the_reference(name):
    case = Case("f_encoders", name)
    embedder, tokens = checked(case, built(case)), case.input("tokens")
    case.check("embeddings", embedder(tokens))
    case.check("embeddings", embedder.encode(tokens))
    if "logits" in case.want:
        case.check("logits", embedder.transformer(tokens))


def test_class_embedder_matches_the_reference():
    case = Case("f_encoders", "classembedder")
    embedder, labels = checked(case, built(case)), case.input("labels")
    case.check("embedding", embedder({"class_label": labels}))
    case.check("embedding", embedder.encode(labels))
    assert set(case.want) == {"embedding"}


def test_spatial_rescaler_matches_the_reference():
    case = Case("f_encoders", "spatialrescaler")
    variants = case.spec["constructor"]["params_list"]
    for index, params in enumerate(variants):
        rescaler = checked(case, built(case, params), index)
        case.check(f"out_{index}", rescaler(case.input("x")))
    assert len(case.want) == len(variants)


def test_hybrid_conditioner_matches_the_reference():
    case = Case("f_encoders", "hybridconditioner")
    pair = checked(case, built(case))
    got = pair(case.input("x"), {"y": case.input("y")})
    assert got.keys() == case.want.keys()
    for name, (value,) in got.items():
        case.check(name, value)


def test_clip_text_transformer_matches_the_reference(tmp_path):
    case = Case("f_encoders", "cliptext_toy")
    CLIPTextConfig(**case.spec["constructor"]["text_config"]).save_pretrained(tmp_path)
    embedder = fill(FrozenCLIPEmbedder(str(tmp_path), max_length=16))
    filled = case.spec["rule_filled"][0]
    assert len(list(embedder.parameters())) == filled["parameter_tensors"]
    assert {".".join(key.split(".")[:2]) for key in embedder.state_dict()} == {
        "transformer.text_model"
    }
    case.check("last_hidden_state", embedder(case.input("tokens")))
