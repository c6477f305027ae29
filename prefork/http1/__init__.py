"""What does HTTP/1.1 look like from the server's side? Bytes in, messages out, and back; no sockets, no clock."""
