"""A whole fleet on one machine: the same agent and hub code, many processes."""
