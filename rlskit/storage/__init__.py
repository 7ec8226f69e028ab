"""Files that lose nothing: written whole or not at all, by one writer, with a seal."""
