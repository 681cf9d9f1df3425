"""Every reference vector has a test: which module compares which cases."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.reference import ROOT, cases

TESTS = Path(__file__).parent

# (category, pattern of case names) -> the module that compares them
COVERED = {
    ("a_autoencoder_kl", "*"): "models/test_autoencoder_published.py",
    ("b_vq", "*"): "models/test_autoencoder_published.py",
    ("c_unet", "*"): "nets/test_vectors.py",
    ("d_ddpm_math", "*"): "diffusion/test_reference_math.py",
    ("d_ldm_math", "*"): "diffusion/test_reference_math.py",
    ("d_schedule", "*"): "diffusion/test_schedule.py",
    ("e_ddim_tables", "*"): "samplers/test_grid.py",
    ("e_samplers", "*"): "samplers/test_reference_samplers.py",
    ("f_encoders", "xtransformer_*"): "nets/test_text.py",
    ("f_encoders", "bert_*"): "nets/test_text.py",
    ("f_encoders", "transformerembedder"): "conditioning/test_published_encoders.py",
    ("f_encoders", "classembedder"): "conditioning/test_published_encoders.py",
    ("f_encoders", "spatialrescaler"): "conditioning/test_published_encoders.py",
    ("f_encoders", "hybridconditioner"): "conditioning/test_published_encoders.py",
    ("f_encoders", "cliptext_toy"): "conditioning/test_published_encoders.py",
    ("g_losses", "disc_*"): "nets/test_discriminator.py",
    ("g_losses", "gan_helpers"): "losses/test_adversarial.py",
    ("g_losses", "klloss_*"): "losses/test_autoencoder.py",
    ("g_losses", "vqloss_*"): "losses/test_autoencoder.py",
    ("g_losses", "lpips"): "losses/test_perceptual.py",
    ("h_ema_lr_dist", "ema_*"): "models/test_ema.py",
    ("h_ema_lr_dist", "gaussian*"): "autoencoders/test_posterior.py",
    ("h_ema_lr_dist", "lr_schedules"): "test_lr_scheduler.py",
    ("i_ldm_specifics", "apply_model_cond_forms"): "diffusion/test_denoiser.py",
    ("i_ldm_specifics", "wrapper_*"): "diffusion/test_denoiser.py",
    ("i_ldm_specifics", "cond_schedule"): "diffusion/test_times.py",
    ("i_ldm_specifics", "cond_*"): "models/test_diffusion_published.py",
    ("i_ldm_specifics", "first_stage_scale_*"): "models/test_diffusion_published.py",
    ("i_ldm_specifics", "forward_*"): "models/test_diffusion_published.py",
    ("i_ldm_specifics", "scale_by_std_kl"): "models/test_diffusion_published.py",
    ("i_ldm_specifics", "delta_border"): "test_tiling.py",
    ("i_ldm_specifics", "split_input"): "test_tiling.py",
    ("j_training", "train_kl_3steps"): "models/test_first_stage_step.py",
    ("j_training", "train_vq_3steps"): "models/test_first_stage_step.py",
    ("j_training", "train_ldm_5steps"): "models/test_diffusion_published.py",
    ("k_published_size", "unet_*"): "nets/test_published_size.py",
    ("k_published_size", "bert_*"): "nets/test_published_size.py",
    ("k_published_size", "ae_*"): "models/test_autoencoder_published.py",
    ("m_modules", "*"): "nets/test_vectors.py",
    ("m_traces", "trace_unet_*"): "nets/test_traces.py",
    ("m_traces", "trace_kl"): "models/test_autoencoder_published.py",
    ("m_traces", "trace_vq"): "models/test_autoencoder_published.py",
}
CATEGORIES = sorted(path.name for path in ROOT.iterdir() if path.is_dir())


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_vector_of_a_category_has_a_test(category):
    patterns = [pattern for found, pattern in COVERED if found == category]
    for name in cases(category):
        assert any(fnmatchcase(name, pattern) for pattern in patterns), f"{category}/{name}"


@pytest.mark.parametrize(("category", "pattern"), COVERED)
def test_a_row_of_the_table_stands_for_vectors_that_its_module_names(category, pattern):
    matched = [name for name in cases(category) if fnmatchcase(name, pattern)]
    assert matched
    source = (TESTS / COVERED[category, pattern]).read_text(encoding="utf-8")
    assert f'"{category}"' in source
    # all of a category, or those whose names begin alike, or each by its name
    is_whole = f'cases("{category}")' in source
    stem = re.match(r"\w*", pattern)[0]
    begins_alike = bool(stem) and f'"{stem}' in source
    assert is_whole or begins_alike or all(f'"{name}"' in source for name in matched)
