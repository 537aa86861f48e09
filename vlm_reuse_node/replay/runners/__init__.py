"""The code that answers for each arm; of the replay, only this folder and what runs it load the model."""
