"""This twin as the parity suite sees it: the one place here that knows the suite."""
