"""Gradients of a first stage's step: the published trajectories, and one forward for all of it."""

import numpy as np
import pytest
import torch

from ldm.losses import autoencoder as losses
from ldm.models import autoencoder as models
from ldm.models.first_stage_step import (
    MicroBatch,
    discriminator_gradients,
    generator_gradients,
    shared_gradients,
)
from tests.models.first_stages import FAMILY, GivenDraws, micro_batches
from tests.reference import Case, fill, key_crc32

KINDS = pytest.mark.parametrize("kind", list(FAMILY))


# the published step


class PublishedRun:
    """Three steps of a case, in the published order."""

    def __init__(self, name):
        self.case = Case("j_training", name)
        cls = getattr(models, self.case.spec["constructor"]["target"].rsplit(".", 1)[1])
        config = self.case.params["lossconfig"]
        loss = getattr(losses, config["target"].rsplit(".", 1)[1])(**config["params"])
        self.model = cls(**{**self.case.params, "lossconfig": loss})
        assert key_crc32(self.model) == self.case.spec["rule_filled"][0]["key_crc32"]
        fill(self.model).train()
        perceptual = self.model.loss.perceptual_loss
        perceptual.load_state_dict(perceptual.state_dict())  # which is how weights are given
        self.model.learning_rate = self.case.spec["learning_rate"]
        self.players, _ = self.model.configure_optimizers()
        self.got = {"gen_losses": [], "disc_losses": []}

    def batch(self, step):
        streams = ("posterior", "posterior for the discriminator")
        given = self.case.spec["inputs"]
        noise = {
            stream: self.case.input(f"posterior_noise_{step}_{player}")
            for player, stream in enumerate(streams)
            if f"posterior_noise_{step}_{player}" in given
        }
        return MicroBatch(self.case.input("x"), GivenDraws(noise))

    def run(self):
        for step in range(3):
            batch = self.batch(step)
            if step == 0:
                self.got["first_step_opt0_grad_norms"] = self.norms_of_whole_objective(batch)
            metrics = generator_gradients(self.model, [batch], step=step)
            self.record(step, 0, metrics)
            self.got["gen_losses"].append(metrics["total_loss"].item())
            self.move(0)
            metrics = discriminator_gradients(self.model, [batch], step=step)
            if step == 0:
                self.got["first_step_opt1_grad_norms"] = self.gradient_norms()
            self.record(step, 1, metrics)
            self.got["disc_losses"].append(metrics["disc_loss"].item())
            self.move(1)
        values = [p.detach().double() for p in self.parameters()]
        self.got["param_sums"] = np.array([v.sum() for v in values])
        self.got["param_norms"] = np.array([v.norm() for v in values])
        last = self.model.decoder.conv_out.weight
        self.got["final__decoder.conv_out.weight"] = last

    def parameters(self):
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.case.spec["parameter_order"]]

    def gradient_norms(self):
        return np.array(
            [0.0 if p.grad is None else p.grad.double().norm() for p in self.parameters()]
        )

    def norms_of_whole_objective(self, batch):
        """Published norms also count what no optimizer of the generator moves."""
        made = self.model.autoencode(*batch)
        terms = self.model.loss.objective(
            batch.images,
            made.reconstruction,
            made.cost,
            step=0,
            last_layer=self.model.get_last_layer(),
        )
        terms.total.mean().backward()
        norms = self.gradient_norms()
        self.model.zero_grad()
        return norms

    def record(self, step, player, metrics):
        if step == 0:
            self.got |= {f"step0_opt{player}_log:train/{k}": v for k, v in metrics.items()}

    def move(self, player):
        self.players[player].step()
        self.model.zero_grad()


@pytest.fixture(scope="module", params=["train_kl_3steps", "train_vq_3steps"])
def published_run(request):
    run = PublishedRun(request.param)
    run.run()
    return run


def test_published_step_follows_the_published_trajectory(published_run):
    case, got = published_run.case, published_run.got
    for name in case.want:
        if not name.startswith("param_"):
            case.check(name, got[name])


@pytest.mark.parametrize("statistic", ["param_sums", "param_norms"])
def test_published_step_moves_every_parameter_as_published(published_run, statistic):
    case, got = published_run.case, published_run.got[statistic]
    first = np.maximum(
        case.want["first_step_opt0_grad_norms"], case.want["first_step_opt1_grad_norms"]
    )
    is_measured = first > 1e-5 * first.max()  # others move by rounding errors alone
    is_discriminator = ["discriminator" in name for name in case.spec["parameter_order"]]
    is_measured |= np.array(is_discriminator)
    rtol, atol = 1e-3, 1e-3
    np.testing.assert_allclose(
        got[is_measured], case.want[statistic][is_measured], rtol=rtol, atol=atol
    )


# the shared step


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal_gradients(got, want, rtol):
    """Equal up to a share of the largest; some, such as biases before a norm, are rounding."""
    assert got.keys() == want.keys()
    atol = rtol * max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


@KINDS
@pytest.mark.parametrize("start", [0, 10], ids=["game", "before the game"])
@pytest.mark.parametrize("perceptual", [0.0, 1.0], ids=["pixels", "lpips"])
def test_shared_step_gives_the_generator_its_published_gradients(kind, start, perceptual):
    model = FAMILY[kind]({"disc_start": start, "perceptual_weight": perceptual})
    batches = micro_batches(2, side=32 if perceptual else 16)
    generator_gradients(model, batches, step=1)
    want = gradients(model)
    shared_gradients(model, batches, step=1)
    got = {name: g for name, g in gradients(model).items() if "discriminator" not in name}
    assert_equal_gradients(got, want, rtol=2e-6)


@KINDS
def test_shared_step_gives_the_discriminator_the_gradients_of_its_loss(kind):
    model, batches = FAMILY[kind](), micro_batches(3)
    images = batches[0].images
    with torch.no_grad():
        fake = model.autoencode(*batches[0]).reconstruction
    loss = model.loss.discrimination(model.loss.judge(images), model.loss.judge(fake), step=0)
    loss.total.mean().backward()
    want = gradients(model)
    model = FAMILY[kind]()
    shared_gradients(model, batches, step=0)
    got = {name: g for name, g in gradients(model).items() if "discriminator" in name}
    assert_equal_gradients(got, want, rtol=2e-6)


@KINDS
@pytest.mark.parametrize("start", [0, 10], ids=["game", "before the game"])
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 2)])
def test_micro_batches_count_as_the_batch_they_make_up(kind, start, sizes):
    model = FAMILY[kind]({"disc_start": start})
    logged = shared_gradients(model, micro_batches(4), step=1)
    want = gradients(model)
    model = FAMILY[kind]({"disc_start": start})
    parts = shared_gradients(model, micro_batches(*sizes), step=1)
    assert parts.keys() == logged.keys()
    for name, value in logged.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    # sums in float32 in another order
    assert_equal_gradients(gradients(model), want, rtol=1e-5)


@KINDS
def test_dropout_drops_the_same_in_both_passes_of_micro_batches(kind, monkeypatch):
    model = FAMILY[kind](network={"dropout": 0.5}).train()
    made, autoencode = [], model.autoencode

    def recorded(*arguments):
        made.append(autoencode(*arguments))
        return made[-1]

    monkeypatch.setattr(model, "autoencode", recorded)
    shared_gradients(model, micro_batches(2, 2), step=1)
    first, second = (
        [each.reconstruction.detach() for each in half] for half in (made[:2], made[2:])
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(model.autoencode(*micro_batches(2)[0]).reconstruction, first[0])


class Calls:
    """Counts forward passes of the parts of a model."""

    def __init__(self, model):
        self.count = {}
        parts = {
            "encoder": model.encoder,
            "decoder": model.decoder,
            "discriminator": model.loss.discriminator,
            "perceptual": model.loss.perceptual_loss,
        }
        for name, module in parts.items():
            self.count[name] = 0
            module.register_forward_hook(lambda *_, name=name: self.add(name))

    def add(self, name):
        self.count[name] += 1


@KINDS
@pytest.mark.parametrize(("start", "judged"), [(0, 2), (10, 0)], ids=["game", "before the game"])
def test_shared_step_runs_each_network_once(kind, start, judged):
    model = FAMILY[kind]({"disc_start": start, "perceptual_weight": 1.0})
    calls = Calls(model)
    shared_gradients(model, micro_batches(2, side=32), step=1)
    # the discriminator sees reconstructions and images
    assert calls.count == {"encoder": 1, "decoder": 1, "discriminator": judged, "perceptual": 1}


@KINDS
def test_nothing_of_the_discriminator_changes_before_the_game(kind):
    model = FAMILY[kind]({"disc_start": 10})
    before = {k: v.clone() for k, v in model.loss.discriminator.state_dict().items()}
    shared_gradients(model, micro_batches(2), step=9)
    assert all(p.grad is None for p in model.loss.discriminator.parameters())
    for name, value in model.loss.discriminator.state_dict().items():
        assert torch.equal(value, before[name])


@KINDS
def test_shared_step_logs_what_the_published_step_logs(kind):
    model, batches = FAMILY[kind](), micro_batches(2)
    want = generator_gradients(model, batches, step=0)
    model = FAMILY[kind]()
    got = shared_gradients(model, batches, step=0)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_quantizer_without_a_loss_is_logged_as_in_the_published_step():
    quantizer = {"target": "ldm.nets.quantizer_fsq.FSQ", "params": {"levels": [4, 2, 2]}}
    want, got = (
        take(FAMILY["vq"]({"n_classes": 16}, quantizer_config=quantizer), micro_batches(2), step=0)
        for take in (generator_gradients, shared_gradients)
    )
    for name in ("quant_loss", "perplexity", "cluster_usage", "total_loss"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


@KINDS
def test_game_without_weight_is_not_played(kind):
    model = FAMILY[kind]({"disc_factor": 0.0})
    metrics = shared_gradients(model, micro_batches(2), step=5)
    assert "disc_loss" not in metrics
    assert metrics["disc_factor"] == 0


def test_learned_log_variance_gets_the_gradient_of_the_likelihood():
    model = FAMILY["kl"]({"learn_logvar": True})
    shared_gradients(model, micro_batches(1, 2), step=0)
    got = model.loss.logvar.grad
    model = FAMILY["kl"]({"learn_logvar": True})
    generator_gradients(model, micro_batches(3), step=0)
    torch.testing.assert_close(got, model.loss.logvar.grad)


def test_frozen_encoder_leaves_the_decoder_to_learn():
    model = FAMILY["kl"]()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    shared_gradients(model, micro_batches(1, 1), step=0)
    assert model.decoder.conv_in.weight.grad.abs().max() > 0
    assert model.encoder.conv_in.weight.grad is None


# eight bits of mantissa through some twenty layers; rounding also moves latents to other codes
@pytest.mark.parametrize(("kind", "least"), [("kl", 0.98), ("vq", 0.9)])
def test_gradients_in_bfloat16_stay_near_those_in_float32(kind, least):
    batches = micro_batches(4)
    model = FAMILY[kind]({"disc_start": 10})
    shared_gradients(model, batches, step=0)
    want = gradients(model)
    model = FAMILY[kind]({"disc_start": 10})
    with torch.autocast("cpu", torch.bfloat16):
        shared_gradients(model, batches, step=0)
    got = gradients(model)
    assert {value.dtype for value in got.values()} == {torch.float32}
    both = [torch.cat([g.flatten() for g in found.values()]) for found in (got, want)]
    assert torch.nn.functional.cosine_similarity(*both, dim=0) > least


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's
def test_compiled_networks_give_the_same_gradients(monkeypatch):
    model, batches = FAMILY["kl"](), micro_batches(2, 2)
    shared_gradients(model, batches, step=0)
    want = gradients(model)
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(  # tracing forwards and backwards; code generation takes minutes
        torch.nn.Module,
        "compile",
        lambda module, **options: compile_module(
            module, backend="aot_eager", fullgraph=True, **options
        ),
    )
    model.compile_networks()
    shared_gradients(model, batches, step=0)
    assert_equal_gradients(gradients(model), want, rtol=1e-5)
