"""What would stop or spoil a run, found before anything starts."""
