"""The command line: what happens before a command's imports, its help, and the config that it is given."""

MISTAKE, INTERRUPTED = 2, 130  # exit statuses
