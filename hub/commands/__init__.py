"""What `ffm hub` tells and does beside running."""
