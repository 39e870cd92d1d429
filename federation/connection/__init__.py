"""The connection to the broker: address, carrier, session, and who is at the other end."""
