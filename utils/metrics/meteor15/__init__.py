"""METEOR 1.5 for English (Denkowski and Lavie 2014) over the tables that pycocoevalcap installs.

Written from the paper and by comparing with the official program's output.
"""
