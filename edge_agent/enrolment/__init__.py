"""How a board becomes a member and stays one: joining, and renewing its certificate."""
