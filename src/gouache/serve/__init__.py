"""The studio: jobs, engine, HTTP interfaces, web page (layer 6)."""
