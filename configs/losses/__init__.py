"""Studies of the losses room."""
