"""The web page: ES modules that the browser runs as they are, and the routes that serve them."""
