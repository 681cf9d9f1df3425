"""Data sets: each yields dictionaries with documented keys; `docs/data.md` has the table."""
