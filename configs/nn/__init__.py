"""Studies of the nn room."""
