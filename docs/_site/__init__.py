"""What Sphinx does not do by itself for the documentation."""
