"""OpenAI's image API, as the package `openai` and the programs built on it speak it."""
