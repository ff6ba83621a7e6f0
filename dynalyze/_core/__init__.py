"""What every room stands on: arrays, files, Ctrl-C, compiled code, processes."""
