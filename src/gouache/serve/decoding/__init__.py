"""Pictures from outside are decoded, converted and resized in processes of their own, one turn after the other."""
