"""Turn forum threads into a clean problem set (paper section 2.1).

read.py            bring in files: problem sets, benchmarks
threads.py         bring in files: forum threads
markup.py          BBCode and HTML of posts as plain text
thread_groups.py   threads with the same first post, or nearly the same
posts.py           a discussion as its posts
language.py        which language a post is in
extract.py         the problems that a thread poses
near_duplicates.py one of the problems that state the same
classify.py        what kind of problem each is; some kinds are dropped
convert.py         proofs become problems with an answer
answers.py         expected answers from the discussions
attribution.py     to which of several problems of a post an answer belongs
labels.py          how posts and replies name one of several problems
labelled.py        threads of which it is known what they pose
decontaminate.py   what a benchmark holds is removed
ngram_index.py     the most similar of many texts
statement.py       the rule by which two problems are one
checks.py          what an extracted or converted problem, and an answer, must be
prompted.py        what the stages that ask a model share
exchanges.py       what a model was asked and said, of a sample of units; how far a second one agrees
"""
