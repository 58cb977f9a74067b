"""The words that broker and agents say to each other, and how they travel."""
