"""File formats: safetensors, torch's zip files, and what opens whichever a file is."""
