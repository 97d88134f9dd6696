"""The same exchange through HTTP/1.1, HTTP/2 and HTTP/3: what the peer saw, and what the caller saw, must agree."""
