"""The command line, `mod-vision VERB key=value`."""
