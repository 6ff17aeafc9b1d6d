"""The upstream's address and login, and the meaning of its refusals."""
