"""Plans for devices of several kinds: crews, lines of crews, and shares of the batch."""
