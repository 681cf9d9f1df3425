"""What every layer inside a U-Net puts out, against the reference."""

import pytest
import torch

from tests.nets.published_case import build, inputs
from tests.reference import Case

# Layers that a block computes with their weights but does not call: a norm with the SiLU behind
# it, 1x1 convolutions as products of tokens, upsampling inside its convolution.
FUSED = (
    "in_layers.0",
    "in_layers.1",
    "out_layers.0",
    "out_layers.1",
    "stat__out.0",
    "stat__out.1",
    "1.qkv",
    "1.attention",
    "1.proj_in",
    "1.proj_out",
    "2.conv",
)
# With scale and shift between them, the second norm and its SiLU are computed one by one; a block
# that goes up has its first convolution fused with the upsampling.
FUSED_WITH_SCALE_SHIFT = (*FUSED[:2], *FUSED[4:8], *FUSED[9:10], "1.2.h_upd", "1.2.in_layers.2")
CASES = {
    "trace_unet_attention": FUSED,
    "trace_unet_crossattn": FUSED,
    "trace_unet_scaleshift_updown": FUSED_WITH_SCALE_SHIFT,
}


def statistics(x):
    x = x.detach().double()
    return torch.cat([torch.stack([x.mean(), x.std(), x.abs().max()]), x.flatten()[:5]])


@pytest.mark.parametrize("name", CASES)
def test_every_layer_puts_out_what_the_reference_does(name):
    case = Case("m_traces", name)
    net, seen = build(case), {}

    def record(path, out):
        seen[f"stat__{path}"] = statistics(out)

    for path, module in net.named_modules():
        module.register_forward_hook(lambda _, __, out, path=path: record(path, out))
    with torch.no_grad():
        net(*inputs(case).values())
    missing = set(case.want) - set(seen)
    assert missing == {key for key in case.want if key.endswith(CASES[name])}
    for key in set(case.want) & set(seen):
        case.check(key, seen[key])
