"""How much of a version comes from public data and how much from the federation."""
