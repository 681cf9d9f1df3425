"""First-stage objectives: reconstruction, perceptual distance, adversary."""
