"""Published path of the first stage's loss."""

from ldm.losses.autoencoder import LPIPSWithDiscriminator as LPIPSWithDiscriminator
