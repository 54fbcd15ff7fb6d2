"""RESP on the wire: finding frames in bytes, and the few encodings the proxy needs. No I/O."""
