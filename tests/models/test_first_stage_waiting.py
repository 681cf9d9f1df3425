"""A training step of a first stage does not wait for its GPU."""

import pytest
import torch

from tests.models.first_stages import EVERY_RULE, Images, tiny_kl, tiny_vq
from tests.models.test_first_stage_module import collate, trainer
from tests.models.test_vq_quantizers import CONFIGS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*number of training batches.*is smaller than the logging"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
STEPS = 4
RULES = {"perceptual_weight": 1.0, **EVERY_RULE}
OPTIONS = {"equivariance": {"p": 0.5, "scales": [0.75, 1.0]}, "use_ema": True}
KINDS = {
    **{
        f"vq, {name}": lambda c=c: tiny_vq(RULES, quantizer_config=c, **OPTIONS)
        for name, c in CONFIGS.items()
    },
    "kl": lambda: tiny_kl(RULES, **OPTIONS),
    "kl, learned variance": lambda: tiny_kl({**RULES, "learn_logvar": True}, **OPTIONS),
    "kl, fixed weight": lambda: tiny_kl({**RULES, "adaptive": False}, **OPTIONS),
    "kl, as published": lambda: tiny_kl(
        {**RULES, "disc_warmup": 0}, **OPTIONS, gan_forward="published"
    ),
}


def strictly(function, seen):
    """The function, in which waiting for the GPU is an error from the second call on."""

    def strict(*arguments):
        seen.append(function.__name__)
        if seen.count(function.__name__) == 1 or not torch.cuda.is_available():
            return function(*arguments)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strict


def fit(name, accumulate, accelerator, path):
    """Train, and return what was called strictly."""
    torch.manual_seed(0)
    model, seen = KINDS[name](), []
    model.accumulate_grad_batches, model.gradient_clip_val = accumulate, 1.0
    for method in ("_micro_batch", "_move_players"):
        setattr(model, method, strictly(getattr(model, method), seen))
    run = trainer(path, accelerator=accelerator, devices=1, max_steps=STEPS)
    images = Images(2 * accumulate * STEPS, side=32)
    run.fit(model, torch.utils.data.DataLoader(images, batch_size=2, collate_fn=collate))
    return seen


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", KINDS)
def test_no_step_with_any_rule_or_quantizer_waits_for_the_gpu(name, accumulate, tmp_path):
    seen = fit(name, accumulate, "gpu", tmp_path)
    assert seen.count("_move_players") == STEPS
