"""The one thread that owns the model, and the queue of work for it."""
