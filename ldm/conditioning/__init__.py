"""Conditioning: the encoders tau_theta, and the conditioner that composes them."""
