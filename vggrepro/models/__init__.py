"""Table 1, the network, its dense form, initialisation, warm start and weight files.

Nothing is imported here, so that ``vggrepro.models.table1`` and ``vggrepro.models.summary`` stay free of torch.
"""
