"""One camera's conversation with the model. Start reading in scene_session.py."""
