"""What tests of several packages share.

engines.py    a server on loopback that answers what a test says, and the product's own client of it
services.py   what a stage is lent in a test, and a way to run one over given records
"""
