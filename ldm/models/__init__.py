"""What you train: Lightning modules, wiring only."""
