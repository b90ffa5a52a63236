"""What a caller gives as media: files, and what is in memory."""
