"""Attention proven: cases, implementations of it behind adapters, checks, and faults that must be caught."""
