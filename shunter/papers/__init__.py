"""One module a paper: its claim, its arms and its measure."""
