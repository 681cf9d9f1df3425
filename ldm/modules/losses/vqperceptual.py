"""Published path of the VQ first stage's loss."""

from ldm.losses.adversarial import adopt_weight as adopt_weight
from ldm.losses.adversarial import hinge_d_loss as hinge_d_loss
from ldm.losses.adversarial import vanilla_d_loss as vanilla_d_loss
from ldm.losses.autoencoder import VQLPIPSWithDiscriminator as VQLPIPSWithDiscriminator
