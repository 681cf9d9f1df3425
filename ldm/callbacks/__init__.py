"""What happens beside training: checkpoints, pictures, progress, the record of the run."""
