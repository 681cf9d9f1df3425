"""Samplers: from noise to data, along a grid of times."""
