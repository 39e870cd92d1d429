"""What crosses the wire: topics, messages, chunked transfer, the MQTT session."""
