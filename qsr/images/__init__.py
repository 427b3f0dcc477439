"""Pictures: reading and writing them, resizing, sets of them, and how they are scored."""
