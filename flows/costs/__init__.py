"""What a release takes: time, processor, memory, bytes, money and energy, kept beside it and never in it."""
