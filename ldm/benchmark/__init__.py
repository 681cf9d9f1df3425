"""Benchmark: what a training step costs, beside the same networks of another library.

setting      what is measured: device, precision, batch, with or without the discriminator; clocks
contenders   one training step of a configuration, by this project or by diffusers
measure      times, interleaved; peak memory, each contender in a process of its own
flops        model FLOPs of a configuration, and the ceiling of this machine
sampler      what the sampling loop costs beside its network
report       the tables that `scripts/benchmark.py` prints
"""
