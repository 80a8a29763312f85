"""The web page of the chat."""
