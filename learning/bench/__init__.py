"""What training costs here: ways to train, measured one by one in worker processes."""
