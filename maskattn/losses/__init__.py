"""Losses under a mask: what both twins check of their arguments."""
