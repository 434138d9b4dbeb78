"""Settings: their defaults and units, and reading them from arguments and files."""
