"""The server's side: links, the pools that share them, pinned links, and what is known of a node."""
