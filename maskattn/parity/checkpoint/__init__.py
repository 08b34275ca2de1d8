"""A checkpoint proven: its attention layers in both twins."""
