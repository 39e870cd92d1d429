"""The agent's own software: a release is fetched, placed, checked, and put on trial."""
