"""Published path of the conditioning encoders."""
