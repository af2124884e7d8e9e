"""How each operation's work is best cut on this GPU, measured and proved: `sdopt tune`.

In the order the data flows: `jobs` are the operations of an image, `candidates` the tiles worth
timing, `compiling` compiles them beside and checks their machine code, `timing` times them,
`repeats` proves the fastest, `choosing` puts these together, and `table` is what is stored.
`chosen` are all the tiles that the table and the rules can choose.
"""
