"""A layer of attention as a list of parts, without a framework: each part is defined once, for both twins."""
