"""RESP on the wire: finding frames in bytes, and the few encodings the proxy itself needs. No I/O."""
