"""Preparing boards: a card for the first boot, a service on a system that runs."""
