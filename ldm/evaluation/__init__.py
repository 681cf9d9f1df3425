"""Evaluation: numbers about what a model draws. Uses models through encode, decode and sample."""
