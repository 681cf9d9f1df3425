import collections

import torch
from torch import nn

from ldm.io import store
from ldm.io.snapshot import on_host


def trained() -> dict:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    moments = {
        n: {"step": torch.ones(()), "exp_avg": p.detach().clone()}
        for n, p in enumerate(model.parameters())
    }
    return {
        "state_dict": model.state_dict(),
        "optimizer_states": [
            {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
        ],
        "views": (torch.arange(10)[3:7:2], torch.zeros(2, 2).T, torch.zeros(0)),
        "counts": collections.OrderedDict(a={"b": 1}),
        "parameter": nn.Parameter(torch.zeros(2)),
        "global_step": 1,
    }


def test_a_snapshot_is_saved_as_the_same_file(tmp_path):
    checkpoint = trained()
    for name, each in (("a.ckpt", checkpoint), ("b.ckpt", on_host(checkpoint))):
        store.save(each, tmp_path / name)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_what_training_changes_afterwards_is_not_in_it():
    checkpoint = trained()
    before = [each.clone() for each in checkpoint["state_dict"].values()]
    copied = on_host(checkpoint)
    for each in checkpoint["state_dict"].values():
        each.zero_()
    checkpoint["counts"]["a"]["b"] = 2
    assert all(map(torch.equal, copied["state_dict"].values(), before))
    assert copied["counts"]["a"]["b"] == 1
    tied = copied["state_dict"]["0.weight"], copied["state_dict"]["2.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()
