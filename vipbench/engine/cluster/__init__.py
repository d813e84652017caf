"""A run on several machines: cut into parts, each an ordinary run of a smaller RunSpec on the
machine where it stands; their results come back as files. The cluster schedules."""
