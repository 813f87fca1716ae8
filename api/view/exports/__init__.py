"""Reports as files of other tools: pictures, traces, graphs."""
