"""What heads are worth: acceptance over the base's own text, and whether two runtimes agree."""
