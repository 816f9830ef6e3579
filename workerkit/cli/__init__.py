"""The command line: thin groups that parse, call and print."""
