"""chat_format."""
