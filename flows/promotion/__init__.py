"""Which release is in use: versions and champions as tags of Git, compared and swapped, signed by people."""
