"""Guidance: a denoiser in, another denoiser out."""
