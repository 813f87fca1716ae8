"""Memory allocation: addresses of buffers in an arena, and layouts of flat parameter buffers."""
