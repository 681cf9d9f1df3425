"""Published paths of the networks."""
