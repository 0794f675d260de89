"""The cut: a frozen base in the cloud, while data, embedding, head and everything that trains stay on the device."""
