"""A fleet on disk and on this machine: enrolment, certificates, bundles, status, local processes."""
