"""The cases of every op: sizes, contenders, the float64 truth, and what is counted for the floor."""
