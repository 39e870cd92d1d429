"""Many agents at once: sessions, outboxes and uploads of a fleet, and what they cost the hub."""
