"""The `maskattn` command: one module for each of its commands, loaded when called."""
