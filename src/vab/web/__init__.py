"""What the pages share: who may open them, and a server that nobody can hold up."""
