"""Second-stage models: what diffuses, and how it is put together."""
