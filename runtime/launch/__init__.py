"""Programs as folders, and processes that run them."""
