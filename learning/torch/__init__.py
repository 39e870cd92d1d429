"""The torch engine: a quantized base by transformers and bitsandbytes, an adapter by peft."""
