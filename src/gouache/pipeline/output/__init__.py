"""What becomes of an image: recipe, metadata, sheets, films, safety gate, watermark."""
