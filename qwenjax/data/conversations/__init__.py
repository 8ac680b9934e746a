"""Chat, preference and prompt data: one `schema`, other `formats` converted to it, and rows encoded (docs/data.md)."""
