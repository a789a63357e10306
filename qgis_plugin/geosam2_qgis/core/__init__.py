"""Everything that needs no widgets: protocol, process, pixels, session, output."""
