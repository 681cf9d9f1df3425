"""What validation measures of all images together."""

import pytest
import torch
from torch.utils.data import DataLoader

from ldm.data.module import collate
from ldm.fidelity import Sharpness, detail
from tests.models.first_stages import FAMILY, Images
from tests.models.processes import in_two_processes
from tests.models.test_first_stage_module import trainer


def images(count, contrast=1.0):
    generator = torch.Generator().manual_seed(count)
    return contrast * (torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1)


def of(*pairs):
    found = Sharpness()
    for given, made in pairs:
        found.update(given, made)
    return float(found.compute())


@pytest.mark.parametrize("contrast", [0.0, 0.5, 1.0])
def test_sharpness_is_linear_in_the_contrast_of_reconstructions(contrast):
    assert of((images(3), contrast * images(3))) == pytest.approx(contrast, rel=1e-5)


def test_sharpness_is_clamped_to_what_is_seen():
    assert of((images(2), 9 * images(2))) == of((images(2), (9 * images(2)).clamp(-1, 1)))


def test_sharpness_of_batches_is_that_of_all_images():
    given, made = images(5), images(5, 0.3)
    parts = of((given[:1], made[:1]), (given[1:], made[1:]))
    assert parts == pytest.approx(of((given, made)), rel=1e-5)


def test_one_blank_image_does_not_decide_the_sharpness():
    blank, noise = torch.zeros(1, 3, 16, 16), images(1, 0.01)
    alone = of((images(9), 0.7 * images(9)))
    assert of((images(9), 0.7 * images(9)), (blank, noise)) == pytest.approx(alone, rel=0.01)
    assert float(detail(noise) / detail(blank).clamp_min(1e-4)) > 100


class WithBlank(Images):
    """The first image has no detail."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"image": sample["image"] * (index > 0)}


@pytest.mark.parametrize("kind", list(FAMILY))
@pytest.mark.parametrize("size", [1, 3])
def test_validation_logs_the_sharpness_of_all_images(kind, size, tmp_path):
    model, data = FAMILY[kind](use_ema=True).eval(), WithBlank(4)
    with torch.no_grad():
        given = model.get_input(collate([data[i] for i in range(4)]))
        want = of((given, model.autoencode(given, None).reconstruction))
    batches = DataLoader(data, batch_size=size, collate_fn=collate)
    for _ in range(2):
        (found,) = trainer(tmp_path).validate(model, batches, verbose=False)
        assert found["val/sharpness"] == pytest.approx(want, rel=1e-4)
        assert found["val_ema/sharpness"] == pytest.approx(want, rel=1e-4)


def ratio_of_two_ranks(rank, world):
    torch.distributed.init_process_group("gloo")
    found = Sharpness()
    found.update(images(2 + rank), images(2 + rank, 0.5 + 0.25 * rank))
    given = detail(images(2)).sum(), detail(images(3)).sum()
    want = (0.5 * given[0] + 0.75 * given[1]) / (given[0] + given[1])
    torch.testing.assert_close(found.compute(), want.double(), rtol=1e-5, atol=0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharpness_of_two_ranks_is_that_of_all_images():
    in_two_processes(ratio_of_two_ranks)
