"""Jobs: pieces of work with settings and a result, kept in a journal, done by any executor."""
