"""Publishing a model's weights, and loading them from wherever a copy lives."""
