"""One file for each step between versions of the tables; a step that was released is never changed."""
