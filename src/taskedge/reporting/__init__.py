"""Pictures and pages made from the files of a run, a plan or a delta."""
