"""Published path of the first stage's posterior."""
