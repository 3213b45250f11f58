"""Scores of restored images. catalogue.py lists all of them; each is computed by the file that it names there."""
