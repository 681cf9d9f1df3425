"""Benchmark: what a training step and drawing cost, the former beside another library.

setting      what is measured: device, precision, batch, with or without the discriminator; clocks
contenders   one training step of a configuration, by this project or by diffusers
measure      times, interleaved; peak memory, each contender in a process of its own
flops        model FLOPs of a configuration, and the ceiling of this machine
sampler      what the sampling loop costs beside a network that costs nothing
sampling     what drawing costs beside the configuration's own network
report       the tables that `scripts/benchmark.py` prints
"""
