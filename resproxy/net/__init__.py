"""The one seam to the event loop: sockets that read, write through and gather writes."""
