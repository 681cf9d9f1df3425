"""Published path of the KL first stage's loss."""

from ldm.losses.autoencoder import DummyLoss as DummyLoss
from ldm.losses.autoencoder import LPIPSWithDiscriminator as LPIPSWithDiscriminator
