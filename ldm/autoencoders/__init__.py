"""What makes a first stage a first stage: its protocol, its posterior, its scale, tiling."""
