"""The command line: what `main.py` and the scripts call."""
