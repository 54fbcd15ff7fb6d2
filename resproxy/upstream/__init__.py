"""The server's side: links, pools of shared ones, pinned ones, and what is known of a node."""
