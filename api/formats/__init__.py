"""Files that commands and the Python API read and write."""
