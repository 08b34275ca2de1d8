"""Arithmetic with a fixed result: the float64 oracle, exact attention, random numbers and dropout."""
