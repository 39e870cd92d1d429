"""Adding up: what the updates of a version come to."""
