"""Who may be believed: keys, signed messages, sealed updates, invitations, memberships."""
