"""A client of OpenAI-compatible servers: requests, streams, retries, and what each kind of server says otherwise."""
