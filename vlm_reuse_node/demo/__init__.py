"""The tabletop: a generated scene, its questions, its bags, and the small model that can see it."""
