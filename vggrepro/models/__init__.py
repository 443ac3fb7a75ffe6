"""Table 1 as a table, the network itself, its dense form, initialisation and warm start.

Nothing is imported here, so that ``vggrepro.models.table1`` and ``vggrepro.models.summary`` stay free of torch.
"""
