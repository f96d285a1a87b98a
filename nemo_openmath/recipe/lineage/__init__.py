"""Where what lies in a run comes from: a record, a model, a number of tokens.

run_stages.py     the stages of a run and what each reads, as far as it was made
search.py         a record, its versions and its ancestors in the folders of the stages
novelty_votes.py  votes on code, which are stored by fragment
packed.py         a row in token files and packs
trace.py          all that is known of a record, put together; trace_text.py: the same for people
graph.py          stages, models and files of a run as a graph: lineage.json and a picture
"""
