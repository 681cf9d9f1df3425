"""Published path of the time embedding and of the hybrid conditioner."""

from ldm.conditioning.hybrid import HybridConditioner as HybridConditioner
from ldm.nets.embeddings import timestep_embedding as timestep_embedding
