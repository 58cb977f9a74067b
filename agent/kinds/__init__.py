"""What an agent runs over its ports, one file for each kind of port."""
