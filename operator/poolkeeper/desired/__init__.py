"""What should exist: one pure module per object or file, each turning values into text or a plain dict."""
