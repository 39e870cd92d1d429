"""Making a version: the worker process, and all that it does."""
