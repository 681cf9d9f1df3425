"""What `--check` reports: everything wrong, the shapes, a sample, and what training will take."""
