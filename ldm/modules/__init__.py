"""Import paths of the 2022 release; nothing is defined here, and nothing of ours imports it."""
