"""The attention of PyTorch, Flax and jax.nn, over their own arguments, against both twins."""
