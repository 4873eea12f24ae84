"""freezeframe: bare-metal images of Linux machines, cold or hot."""

__version__ = "0.1.0"
