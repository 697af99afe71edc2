"""Make and check retail tasks: blueprint first, then checks, then words.

Left out on purpose: reading rows (data_reader), scoring completions (task_tester) and anything that
needs torch.
"""
