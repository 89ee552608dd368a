"""Where CT comes from: sources behind one small interface, their transport, the keys and roots of this machine."""
