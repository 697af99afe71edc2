"""Retail tasks: generate them, give them words, audit them.

Reading rows is in `data_reader`, scoring completions in `scoring`. Nothing here imports torch.
"""
