"""Replays bags through the engine and says how fast it was, and how often an answer drifted."""
