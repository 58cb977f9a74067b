"""The packet functions an agent runs beside the kernel's own."""
