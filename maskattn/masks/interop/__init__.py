"""Masks from and to the arrays other libraries use. Whatever a mask cannot say exactly is refused, with its place.

An importer reads values (its array must not be traced) and keeps the array's framework; an exporter returns NumPy.
"""
