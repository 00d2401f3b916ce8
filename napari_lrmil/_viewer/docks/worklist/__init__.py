"""The dock "LRMIL: worklist": slides of a folder or table, their results, and the reviewer's verdicts."""
