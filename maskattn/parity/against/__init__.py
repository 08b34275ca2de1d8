"""Attention layers of other libraries' models against both twins."""
