"""What becomes of a picture: recipes, metadata, files, sheets, films, safety."""
