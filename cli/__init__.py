"""The command `ringway`."""
