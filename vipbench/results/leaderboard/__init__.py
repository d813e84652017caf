"""One page over many results folders."""
