import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from ldm.nets.discriminator import ActNorm, NLayerDiscriminator, SyncedBatchNorm2d
from tests.nets.published_case import build
from tests.reference import Case


@pytest.mark.parametrize("name", ["disc_bn", "disc_actnorm"])
def test_discriminator_gives_the_published_logits_and_states(name):
    case = Case("g_losses", name)
    net, x = build(case), case.input("x")
    with torch.no_grad():
        got = {"logits_eval": net(x)}
        net.train()
        got |= {"logits_train": net(x), "logits_train_2nd": net(0.5 * x + 0.1)}
    got |= {f"state__{key}": value for key, value in net.state_dict().items()}
    for key in case.want:
        case.check(key, got[key], "m_modules")


@pytest.mark.parametrize(("n_layers", "size"), [(1, 30), (3, 30), (5, 6)])
def test_each_layer_but_the_last_two_halves_the_size(n_layers, size):
    with torch.device("meta"):
        net = NLayerDiscriminator(ndf=8, n_layers=n_layers)
        # the last two convolutions lose a cell each
        assert net(torch.empty(2, 3, 256, 256)).shape == (2, 1, *[256 // 2**n_layers - 2] * 2)


def test_weights_start_as_in_dcgan():
    torch.manual_seed(0)
    net = NLayerDiscriminator()
    convolutions = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.cat([w.flatten() for w in convolutions]).std().item() == pytest.approx(0.02, 0.02)
    assert torch.cat(norms).mean().item() == pytest.approx(1, abs=0.005)
    assert torch.cat(norms).std().item() == pytest.approx(0.02, 0.2)


def test_synced_batch_norm_alone_is_the_plain_one():
    plain, synced = nn.BatchNorm2d(4), SyncedBatchNorm2d(4)
    assert list(synced.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 4, 5, 5)
    for _ in range(2):
        assert torch.equal(synced(x), plain(x))
    for key, value in plain.state_dict().items():
        assert torch.equal(synced.state_dict()[key], value)


def test_actnorm_sets_itself_from_the_first_batch_only():
    norm, first = ActNorm(4), torch.randn(8, 4, 6, 6) * 3 + 1
    out = norm(first)
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(0, 2, 3)), torch.full((4,), 17.0).rsqrt() * 17**0.5)
    before = norm.loc.clone()
    norm(torch.zeros(8, 4, 6, 6))
    assert torch.equal(norm.loc, before)


def test_actnorm_from_a_checkpoint_keeps_its_values():
    trained, fresh = ActNorm(4), ActNorm(4)
    trained(torch.randn(8, 4, 6, 6) * 3 + 1)
    fresh.load_state_dict(trained.state_dict())
    fresh(torch.randn(8, 4, 6, 6))
    assert torch.equal(fresh.loc, trained.loc)


def test_actnorm_takes_up_an_untrained_checkpoint():
    trained, fresh = ActNorm(4), ActNorm(4)
    trained(torch.randn(8, 4, 6, 6) * 3 + 1)
    trained.load_state_dict(fresh.state_dict())
    x = torch.randn(8, 4, 6, 6)
    assert torch.equal(trained(x), fresh(x))


NORMS = {"batch norm": SyncedBatchNorm2d, "actnorm": ActNorm}


def normalize(norm, x):
    """Output, gradients of input and parameters, and states of a norm that takes a few batches."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        out = norm(x)
    out.pow(3).sum().backward()
    return out.detach(), x.grad, [p.grad for p in norm.parameters()], norm.state_dict()


def part(rank, kind, path, examples):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=2
    )
    try:
        norm = NORMS[kind](4)
        torch.save(normalize(norm, batch()[examples[rank]]), f"{path}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def batch():
    return torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1


@pytest.mark.slow  # starts two processes
@pytest.mark.parametrize("kind", NORMS)
def test_two_processes_normalize_as_one(kind, tmp_path):
    examples = (slice(0, 2), slice(2, 6))  # not the same number on each
    mp.start_processes(part, (kind, os.fspath(tmp_path), examples), nprocs=2, start_method="spawn")
    out, grad, parameter_grads, state = normalize(NORMS[kind](4), batch())
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    close = {"rtol": 1e-5, "atol": 1e-4}  # sums of cubes in another order
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), out, **close)
    if kind == "batch norm":  # whose statistics carry a gradient from one process to the other
        torch.testing.assert_close(torch.cat([p[1] for p in parts]), grad, **close)
    for i, want in enumerate(parameter_grads):
        torch.testing.assert_close(sum(p[2][i] for p in parts), want, **close)
    for p in parts:
        for key, value in state.items():
            torch.testing.assert_close(p[3][key], value)


def test_spectral_norm_makes_the_largest_singular_value_one():
    torch.manual_seed(0)
    net = NLayerDiscriminator(ndf=8, n_layers=2, use_spectral_norm=True)
    with torch.no_grad():
        for _ in range(300):  # one step of the power iteration each
            net(torch.zeros(1, 3, 16, 16))
    net.eval()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1.0, abs=1e-3)


def test_spectral_norm_takes_the_place_of_batch_norm_and_keeps_the_numbers():
    net, published = (NLayerDiscriminator(use_spectral_norm=on, ndf=8) for on in (True, False))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    numbers = [
        [i for i, m in enumerate(each.main) if isinstance(m, nn.Conv2d)]
        for each in (net, published)
    ]
    assert numbers[0] == numbers[1]
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_spectral_norm_iterates_in_float32_under_autocast():
    net = NLayerDiscriminator(ndf=8, n_layers=1, use_spectral_norm=True)
    other = NLayerDiscriminator(ndf=8, n_layers=1, use_spectral_norm=True)
    other.load_state_dict(net.state_dict())
    net(torch.zeros(1, 3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        other(torch.zeros(1, 3, 16, 16))
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_spectral_norm_and_actnorm_exclude_each_other():
    with pytest.raises(ValueError, match="use_actnorm: true"):
        NLayerDiscriminator(use_actnorm=True, use_spectral_norm=True)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_smallest_side_leaves_one_patch(n_layers):
    net = NLayerDiscriminator(ndf=8, n_layers=n_layers).eval()
    side = net.smallest_side
    assert net(torch.zeros(1, 3, side, side)).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, side - 1, side - 1))
