"""The file system: bounded reading, atomic writing, and what a command may write where."""
