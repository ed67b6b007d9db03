"""A search of settings by validation score; the test part takes no part in it."""
