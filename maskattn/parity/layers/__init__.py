"""Whole layers with parts judged: their float64 oracle, its limits and its gradients."""
