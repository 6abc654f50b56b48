"""The file system: bounded reading, atomic writing, and checks of where a command may write."""
