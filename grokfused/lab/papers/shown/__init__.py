"""What the papers' pages show: a file for each paper, of the same name as that of its runs."""
