"""The SQL subset: text → tokens → syntax tree → typed tree → rows. Nothing of it reaches SQLite as text."""
