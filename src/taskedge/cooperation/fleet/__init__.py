"""A fleet on disk and on this machine: device registry, certificates, status, local processes."""
