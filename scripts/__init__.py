"""What keeps the supply of the project in order: `make lock`, `make audit`, `make secrets`."""
