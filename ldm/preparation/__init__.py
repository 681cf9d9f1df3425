"""What a data set's owner publishes, archives and databases, turned into files that we read.

record     one file that is to be there
archives   the files in a zip, a tar or a directory, as records
journal    what a directory was prepared from, and how
job        writes the records, goes on where it stopped, counts
command    flags that all scripts have
"""
