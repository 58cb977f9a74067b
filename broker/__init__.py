"""The host daemon that makes and removes links; it never reads or writes a slot."""
