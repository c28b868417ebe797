"""Models, one a file; ``model.py`` says what all of them answer."""
