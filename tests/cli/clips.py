"""A small CLIP with random weights, in the files that transformers writes."""

import json

import torch
from transformers import CLIPConfig, CLIPModel

PIECES = ["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "re", "red</w>", "d</w>", "e", "b</w>"]
LAYERS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
TEXT = {"vocab_size": len(PIECES), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def save_clip(directory, *, is_safe=True):
    """The directory, with weights, configuration and tokenizer."""
    config = CLIPConfig(
        text_config={**LAYERS, **TEXT, "max_position_embeddings": 8},
        vision_config={**LAYERS, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    if not is_safe:
        (directory / "model.safetensors").unlink()
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    (directory / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(PIECES)}))
    (directory / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return directory
