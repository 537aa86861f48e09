"""The one thread that owns the model, and what waits for it."""
