"""What was found, for people and programs: tables, a page, a picture, JSON."""
