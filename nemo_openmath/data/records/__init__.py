"""What people do with a folder of records: look at some, search their texts, write them to a file, check all of them.

Every folder that the product fills is read: of a stage that has finished or not, of an import, of an earlier version.
A record is shown joined, with its transcript in it, wherever that lies (core/records/bodies.py). All is streamed.

stored.py       the folder and its records; conditions, such as verdict=equal
shown.py        a record for people; grep.py: what matches in its texts
export.py       JSON Lines and Parquet; check.py: whether all is there
"""
