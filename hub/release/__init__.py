"""Software for the boards: wheels that the hub announces, signed, and hands out."""
