"""A fabric file: its text (`text`), its tables as types (`tables`), and what the whole of it must be (`checks`)."""
