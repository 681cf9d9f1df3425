"""Published state dicts under our names, and back."""

import pytest
import torch

from ldm.config import ConfigError
from ldm.diffusion.posterior import published_buffers
from ldm.diffusion.schedule import PublishedSchedule
from ldm.io.compvis import SCHEDULE_TABLES, from_published, to_published
from ldm.models.ema import EMA
from ldm.nets.unet import UNetModel
from tests.reference_state_dicts import listing

TABLES = published_buffers(PublishedSchedule(20))
LIVE = ("model.diffusion_model.time_embed.0.weight", "model.diffusion_model.out.2.bias")
FIRST_STAGE = ("first_stage_model.encoder.conv_in.weight", "first_stage_model.quant_conv.bias")
CLIP = "cond_stage_model.transformer."


def values(*names):
    return {name: torch.full((2,), float(index)) for index, name in enumerate(names)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def ours():
    averages = [key.replace("model.", "model_ema.module.", 1) for key in LIVE]
    state = values(*LIVE, *averages, *FIRST_STAGE)
    state["model_ema.decay"] = torch.tensor(0.999)
    state["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int32)
    return state


def test_our_names_become_the_published_ones():
    published = to_published(ours(), tables=TABLES)
    assert list(published)[:12] == list(SCHEDULE_TABLES)
    assert set(published) - set(SCHEDULE_TABLES) == {
        *LIVE,
        *FIRST_STAGE,
        "model_ema.decay",
        "model_ema.num_updates",
        "model_ema.diffusion_modeltime_embed0weight",
        "model_ema.diffusion_modelout2bias",
    }


def test_a_round_trip_through_the_published_names_changes_nothing():
    state = ours()
    assert same(from_published(to_published(state, tables=TABLES), state, tables=TABLES), state)


def test_a_state_dict_of_ours_passes_through():
    assert same(from_published(ours(), ours()), ours())


def test_the_tables_are_those_of_a_published_listing_in_its_order():
    published = listing("ldm_celeba256")["state_dict"]
    assert list(published)[:12] == list(SCHEDULE_TABLES)
    assert set(TABLES) == set(SCHEDULE_TABLES)


def test_published_averages_find_the_parameters_of_a_real_network():
    net = UNetModel(
        image_size=8,
        in_channels=3,
        model_channels=32,
        out_channels=3,
        num_res_blocks=1,
        attention_resolutions=[1],
        channel_mult=[1],
        num_heads=1,
    )
    holder = torch.nn.Module()
    holder.diffusion_model = net
    model = torch.nn.Module()
    model.model, model.model_ema = holder, EMA(holder)
    state = model.state_dict()
    published = to_published(state, tables=TABLES)
    assert not [key for key in published if key.startswith("model_ema.module")]
    assert same(from_published(published, state), state)


# the average


def test_a_file_without_an_average_starts_one_from_the_live_weights():
    wanted = ours()
    state = {key: value for key, value in wanted.items() if not key.startswith("model_ema.")}
    made = from_published(state, wanted)
    assert made.keys() == wanted.keys()
    for key in LIVE:
        average = key.replace("model.", "model_ema.module.", 1)
        assert torch.equal(made[average], state[key])
    assert made["model_ema.num_updates"] == 7


def test_an_average_is_dropped_for_a_model_that_keeps_none():
    wanted = values(*LIVE)
    assert from_published(to_published(ours() | wanted, tables=TABLES), wanted).keys() == {
        *LIVE,
        *FIRST_STAGE,
    }


def test_an_average_that_lacks_a_parameter_is_not_completed():
    published = to_published(ours(), tables=TABLES)
    del published["model_ema.diffusion_modelout2bias"]
    assert "model_ema.module.diffusion_model.out.2.bias" not in from_published(published, ours())


# the noise schedule


def test_agreeing_tables_are_dropped():
    state = to_published(ours(), tables=TABLES)
    assert not set(SCHEDULE_TABLES) & set(from_published(state, ours(), tables=TABLES))
    assert not set(SCHEDULE_TABLES) & set(from_published(state, ours()))


@pytest.mark.parametrize(
    "other",
    [PublishedSchedule(20, linear_end=0.019), PublishedSchedule(20, beta_schedule="cosine")],
)
def test_another_noise_schedule_is_refused_with_what_to_set(other):
    state = to_published(ours(), tables=published_buffers(other))
    with pytest.raises(ConfigError, match=r"another noise schedule: betas at step \d+ is .*linear"):
        from_published(state, ours(), tables=TABLES)


def test_a_posterior_of_another_variance_is_refused():
    state = to_published(ours(), tables=published_buffers(PublishedSchedule(20), v_posterior=1.0))
    with pytest.raises(ConfigError, match="another noise schedule: posterior_variance"):
        from_published(state, ours(), tables=TABLES)


def test_another_number_of_steps_is_refused():
    state = to_published(ours(), tables=published_buffers(PublishedSchedule(30)))
    with pytest.raises(ConfigError, match="noise schedule has 30 steps, the configuration's 20"):
        from_published(state, ours(), tables=TABLES)


# conditioners


def test_a_first_stage_stored_again_as_conditioner_is_dropped_where_it_is_not_wanted():
    twins = [key.replace("first_stage_model", "cond_stage_model") for key in FIRST_STAGE]
    state = values(*FIRST_STAGE)
    state |= {twin: state[key].clone() for twin, key in zip(twins, FIRST_STAGE, strict=True)}
    assert set(from_published(state, values(*FIRST_STAGE))) == set(FIRST_STAGE)
    assert set(from_published(state, values(*FIRST_STAGE, *twins))) == {*FIRST_STAGE, *twins}
    state[twins[0]] += 1
    assert set(from_published(state, values(*FIRST_STAGE))) == {*FIRST_STAGE, twins[0]}


@pytest.mark.parametrize("file_level", ["text_model.", ""])
def test_clip_is_found_with_and_without_its_extra_level(file_level):
    inside = ("embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.bias")
    file = values(*[CLIP + file_level + key for key in inside])
    file[CLIP + file_level + "embeddings.position_ids"] = torch.arange(77)[None]
    wanted = values(*[CLIP + "text_model." + key for key in inside])
    assert same(from_published(file, wanted), wanted)


def test_clip_gets_its_constant_positions_in_a_published_file():
    key = CLIP + "text_model.embeddings.position_embedding.weight"
    published = to_published({key: torch.zeros(77, 4)}, tables=TABLES)
    ids = published[CLIP + "text_model.embeddings.position_ids"]
    assert torch.equal(ids, torch.arange(77)[None])
    assert ids.dtype == torch.int64


def test_another_text_transformer_keeps_its_names():
    names = (CLIP + "token_emb.weight", CLIP + "attn_layers.layers.0.0.weight")
    assert same(from_published(values(*names), values(*names)), values(*names))
    stranger = {CLIP + "unknown.weight": torch.ones(1)}
    assert from_published(stranger, values(*names)).keys() == stranger.keys()


# what is left


@pytest.mark.parametrize("name", ["scale_factor", "logvar"])
def test_what_a_file_may_leave_out_comes_from_the_configuration(name):
    wanted = values(*LIVE, name)
    state = values(*LIVE)
    assert torch.equal(from_published(state, wanted)[name], wanted[name])
    assert name not in from_published(state, state)
    state[name] = torch.full((2,), 5.0)
    assert torch.equal(from_published(state, wanted)[name], state[name])


def test_names_that_nothing_explains_stay_for_the_report():
    state = values(*LIVE, "something.else", "cond_stage_model.embedding.weight")
    assert same(from_published(state, values(*LIVE)), state)
