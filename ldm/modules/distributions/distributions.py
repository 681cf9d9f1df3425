"""Published path of the first stage's posterior."""

from ldm.autoencoders.posterior import DiagonalGaussian as DiagonalGaussianDistribution
