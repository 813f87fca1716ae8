"""Planning as a service on stdin and stdout: for scripts and agents."""
