"""The object that a notebook holds: opens sessions and chooses the backend."""
