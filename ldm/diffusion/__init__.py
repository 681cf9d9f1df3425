"""The diffusion process: schedules, what a network predicts, and the training objective."""
