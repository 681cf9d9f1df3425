"""Encoders trained with the network: what moves, by which gradient, and what is never told."""

import pytest
import torch

from ldm.models.diffusion.ddpm import LatentDiffusion
from tests.models.diffusion_models import (
    ATTENDING,
    batch,
    filled,
    labels,
    latent,
    parameters,
    refused,
    trainer,
    unet,
)

# every slot is filled: tokens of a class, channels of a map of labels, a vector of a class
MIXED = {**ATTENDING, "in_channels": 5, "adm_in_channels": 6}


def map_of_labels(**options):
    params = {"n_stages": 0, "in_channels": 3, "out_channels": 2, "key": "map"} | options
    return {"target": "ldm.conditioning.spatial.SpatialRescaler", "params": params}


def mixed(trainable=True, **options):
    """Parameters of a model with an encoder in each slot."""
    encoders = [labels(), map_of_labels(), labels(embed_dim=6, slot="vector", key="other")]
    return parameters(
        cond_stage_config=encoders,
        cond_stage_trainable=trainable,
        unet_config=unet(**MIXED),
        **options,
    )


def examples(first=0, size=4):
    """A batch with a map of labels and a second class."""
    keys = torch.arange(first, first + size)
    generator = torch.Generator().manual_seed(first)
    maps = torch.randint(0, 3, (size, 4, 4), generator=generator)
    return {**batch(size, first=first), "map": maps, "other": (keys + 1) % 4}


class Batches(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([examples()])


def stepped(model):
    """A model after one optimizer step, and its parameters before it."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.learning_rate = 1e-2
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
    trainer(1).fit(model, loader)
    return before


# what moves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainable", "trained"),
    [(False, set()), (True, {0, 1, 2}), ([False, True, False], {1})],
)
def test_an_optimizer_step_moves_the_encoders_that_are_trained_and_no_other(trainable, trained):
    model = filled(LatentDiffusion(**mixed(trainable)))
    before = stepped(model)
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    encoders = {int(name.split(".")[1]) for name in moved if name.startswith("cond_stage_model")}
    assert encoders == trained
    assert {name for name in before if name.startswith("model.")} <= moved
    for index, encoder in enumerate(model.cond_stage_model):
        assert all(p.requires_grad is (index in trained) for p in encoder.parameters())
        assert encoder.training is (index in trained)
    require_average_of_the_network(model, before)


def require_average_of_the_network(model, before):
    """Of the network alone, and by its formula after the first update."""
    average, live = (dict(m.named_parameters()) for m in (model.model_ema.module, model.model))
    assert average.keys() == live.keys()
    decay = 2 / 11  # of the first update
    for name, value in average.items():
        want = decay * before[f"model.{name}"] + (1 - decay) * live[name]
        torch.testing.assert_close(value, want)


def test_an_encoder_that_is_not_trained_drops_nothing_out():
    model = latent(mixed([True, False, True])).train()
    assert [encoder.training for encoder in model.cond_stage_model] == [True, False, True]
    optimized = {id(parameter) for parameter in model.learned_parameters()}
    first, second, third = (
        {id(p) for p in encoder.parameters()} for encoder in model.cond_stage_model
    )
    assert first | third <= optimized
    assert not second & optimized


def test_as_many_encoders_are_trained_or_not_as_there_are():
    refused(
        r"cond_stage_trainable: \[True, False\]; expected one value for all encoders, or 3",
        mixed([True, False]),
    )


def test_an_encoder_that_freezes_itself_cannot_be_asked_to_learn(tmp_path):
    from transformers import T5Config

    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=9).save_pretrained(
        tmp_path
    )
    params = {"version": str(tmp_path), "key": "caption"}
    frozen = {"target": "ldm.conditioning.t5.FrozenT5Embedder", "params": params}
    told = {"cond_stage_config": [labels(), frozen], "unet_config": unet(**ATTENDING)}
    message = r"cond_stage_trainable\.1: FrozenT5Embedder cannot be trained; expected false"
    refused(message, parameters(**told, cond_stage_trainable=[True, True]))
    model = LatentDiffusion(**parameters(**told, cond_stage_trainable=True))
    assert not any(p.requires_grad for p in model.cond_stage_model[1].parameters())


# its gradient


def tau(**options):
    """A text encoder that is given token ids."""
    params = {"n_embed": 8, "n_layer": 1, "vocab_size": 9, "max_seq_len": 3, "key": "tokens"}
    target = "ldm.conditioning.text.BERTEmbedder"
    return {"target": target, "params": params | {"use_tokenizer": False} | options}


def loss_of(model, told):
    """Mean loss of a batch in float64, at the same times and noise."""
    z = model.get_input(told).double()
    terms = model.objective(model.denoiser, z, model.conditioner(told), draws=model.draws(told))
    return terms.total.mean()


@pytest.mark.parametrize(
    ("encoders", "name"),
    [
        ([labels(), map_of_labels()], "0.embedding.weight"),
        ([labels(), map_of_labels()], "1.channel_mapper.weight"),
        ([tau(), labels(embed_dim=6, slot="vector")], "0.transformer.token_emb.weight"),
        ([tau(), labels(embed_dim=6, slot="vector")], "0.transformer.norm.weight"),
        ([tau(), labels(embed_dim=6, slot="vector")], "1.embedding.weight"),
    ],
)
def test_the_gradient_of_an_encoder_is_the_slope_of_the_loss(encoders, name):
    network = ATTENDING | ({"in_channels": 5} if "map" in str(encoders) else {"adm_in_channels": 6})
    model = filled(
        LatentDiffusion(
            **parameters(
                cond_stage_config=encoders,
                cond_stage_trainable=True,
                unet_config=unet(**network),
                use_ema=False,
            )
        )
    ).double()
    told = examples(size=2) | {"tokens": torch.tensor([[2, 5, 3], [2, 6, 3]])}
    loss_of(model, told).backward()
    parameter = model.cond_stage_model.get_parameter(name)
    gradient, step = parameter.grad.flatten(), 1e-5
    largest = gradient.abs().topk(3).indices
    slopes = []
    with torch.no_grad():
        flat = parameter.view(-1)
        for index in largest:
            value = flat[index].clone()
            losses = []
            for sign in (1, -1):
                flat[index] = value + sign * step
                losses.append(loss_of(model, told))
            flat[index] = value
            slopes.append((losses[0] - losses[1]) / (2 * step))
    assert gradient[largest].abs().min() > 0
    torch.testing.assert_close(torch.stack(slopes), gradient[largest], rtol=1e-6, atol=1e-12)
