"""How frozen weights lie in memory: resident, memory-mapped, or quantized to int8."""
