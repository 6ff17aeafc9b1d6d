"""Where the database is, how to log in there, and what its refusals mean."""
