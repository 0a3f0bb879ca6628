"""The test kit: the tolerance rule, shapes and layouts, the table of operators, oracles."""
