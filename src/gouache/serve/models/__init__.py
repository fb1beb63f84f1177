"""The studio's models: catalog, facts, downloads."""
