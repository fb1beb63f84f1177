"""The server, called the studio: jobs, workers, HTTP APIs, web page (layer 6)."""
