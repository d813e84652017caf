"""A run on several machines: it is cut into parts, each an ordinary run of a smaller RunSpec on one
machine; results return as files. The cluster schedules the parts."""
