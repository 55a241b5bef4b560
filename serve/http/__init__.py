"""HTTP/1.1 on httptools' parser and asyncio: little enough that a request costs tens of microseconds."""
