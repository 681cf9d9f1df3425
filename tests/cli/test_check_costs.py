"""What a check says that training takes: memory, operations, disk, time."""

import json

import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.cli.arguments import parse
from ldm.cli.preflight import shape_of
from ldm.cli.report.checking import check_everything
from ldm.cli.report.costs import Plan, training_costs
from ldm.cli.report.replay import Heap, Live, played
from ldm.cli.report.tracing import Trace, shape_only
from ldm.cli.rundir import new_run
from ldm.data.shapes import ShapesDataset
from tests.cli.runs import ROOT, first_stage, run_main, second_stage, write

SAMPLE = ShapesDataset(16, length=1)[0]


def costs(config, **plan):
    return training_costs(shape_of(config["model"]), SAMPLE, Plan(**plan), 2)


def network():
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)
    return nn.Sequential(*layers)


def traced(batch):
    """A trace of a forward and a backward pass; bytes of weights, kept for it, left after it."""
    with torch.device("meta"):
        net = network()
    trace = Trace("cpu")
    shape_only(net, trace)
    weights = trace.now
    with trace:
        loss = net(torch.empty(batch, 64)).sum()
        kept = trace.now - weights
        loss.backward()
        del loss
    return trace, weights, kept, trace.now


def test_a_trace_counts_weights_what_autograd_keeps_and_gradients():
    trace, weights, kept, left = traced(batch=32)
    numbers = 64 * 128 + 128 + 128 * 64 + 64
    assert weights == 4 * numbers
    # the images, what ReLU gave, and the loss; the layers' own results are gone
    assert kept == 4 * 32 * (64 + 128) + 4
    assert left == 2 * weights
    assert trace.peak > weights + kept


def test_a_trace_counts_the_operations_that_are_made():
    trace, *_ = traced(batch=8)
    net = network()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(8, 64)).sum().backward()
    assert trace.flops == counter.get_total_flops()


def test_autocast_keeps_copies_of_weights_in_a_trace():
    kept = []
    for enabled in (False, True):
        with torch.device("meta"):
            net = network()
        trace = Trace("cpu")
        shape_only(net, trace)
        before = trace.now
        with trace, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = net(torch.empty(1, 64))
            kept.append(trace.now - before)
        del out
    assert kept[0] < 2 * 2 * 64 * 128 < kept[1]


def test_a_heap_keeps_its_holes_and_joins_them():
    heap, live = Heap(), Live()
    for memory in (heap, live):
        for name in range(4):
            memory.take(name, 1000)
        full = memory.peak
        memory.give(1)
        memory.take(5, 1500)  # longer than the hole
        if isinstance(memory, Heap):
            assert memory.peak > full + 1000
        memory.give(2)
        longest = memory.peak
        memory.take(6, 1500)  # in the hole of both
        assert memory.peak == longest if isinstance(memory, Heap) else longest + 500
    assert heap.peak > live.peak


def test_a_large_piece_is_given_back_to_the_system():
    heap = Heap()
    for name in range(3):
        heap.take(name, 2**28)
        heap.give(name)
    assert heap.peak < 2**28 + 2**20
    assert heap.mapped == 0


def test_gradients_of_the_step_before_are_dropped_where_the_trainer_drops_them():
    # activations of 100 that the backward pass frees, gradients of 10 that stay
    events = [(1, 100), (2, 10), (1, -1)]
    assert played(events, [20], 1, Live()) == 100 + 10 + 20
    assert played(events, [20], 0, Live()) == 100 + 10 + 20
    # of a second micro-batch each gradient is there for a moment, beside the first one's
    assert played(events, [20], 1, Live(), accumulates=True) == 100 + 2 * 10 + 20
    late = [(1, 100), (2, 10), (3, 5), (3, -1), (1, -1)]
    assert played(late, [20], 2, Live()) == 100 + 10 + 10 + 20


@pytest.mark.parametrize("stage", [first_stage, second_stage])
def test_costs_follow_the_batch_the_accumulation_and_the_optimizer(stage):
    one, two = (costs(stage(), batch_size=size) for size in (4, 8))
    assert (one.weights, one.gradients, one.optimizer) == (
        *(two.weights, two.gradients, two.optimizer),
    )
    assert one.optimizer == pytest.approx(2 * one.gradients, rel=0.01)
    assert two.flops == pytest.approx(2 * one.flops, rel=0.02)
    assert two.peak > one.peak > one.weights + one.optimizer + one.gradients
    held = costs(stage(), batch_size=4, accumulate=4)
    assert held.flops == pytest.approx(4 * one.flops, rel=0.5)
    config = stage()
    config["model"]["params"]["optimizer_config"] = {"target": "torch.optim.SGD", "params": {}}
    assert costs(config, batch_size=4).optimizer == 0


def test_gradient_checkpointing_takes_less_memory_and_more_operations():
    plain, recomputed = second_stage(), second_stage()
    recomputed["model"]["params"]["unet_config"]["params"]["use_checkpoint"] = True
    before, after = (costs(each, batch_size=64) for each in (plain, recomputed))
    assert after.peak < before.peak
    assert after.flops > before.flops


def test_checkpoints_without_room_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6})())
    path = write(tmp_path / "config.yaml", second_stage())
    args = parse(["-b", path, "--check", "--gpus", "cpu", "-l", str(tmp_path)])
    report = check_everything(args, new_run(args.logdir, None, args.base, ""))
    (found,) = [each for each in report.findings if "checkpoints" in each.message]
    assert found.severity == "warning"
    assert report.exit_code == 3


@pytest.mark.slow
def test_the_estimate_is_near_what_is_measured_and_nothing_is_written(tmp_path):
    config = yaml.safe_load((ROOT / "configs/tasks/autoencoder.yaml").read_text())
    params = config["data"]["params"]
    del params["validation"]
    params |= {"batch_size": 4, "num_workers": 0}
    params["train"]["params"]["size"] = 64
    config["lightning"]["callbacks"] = {"image_logger": None}
    path = write(tmp_path / "config.yaml", config)
    words = ["--check", "--profile", "1", "--format", "json", "--gpus", "cpu"]
    code, said = run_main(["-b", path, *words, "--precision", "32-true"], tmp_path, timeout=600)
    told = json.loads(said[said.index("{\n") :])["sections"]
    assert code == 0
    estimate = told["costs, estimated"]["training, at most"]
    assert 0.7 < estimate / told["measured"]["training, at most"] < 1.4
    assert told["measured"]["a step"] > 0
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]
