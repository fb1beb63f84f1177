"""Commands around the studio: server, workers, accounts, jobs."""
