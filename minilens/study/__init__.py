"""The experiments of the posts of 2020 and 2021, and what they found."""
