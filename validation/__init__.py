"""Theory against simulation: one script per figure of the paper, run by ``make validate``."""
