"""What tests stand on. It knows processes and pytest, and nothing of the package's insides."""
