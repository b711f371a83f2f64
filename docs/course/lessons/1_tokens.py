# %% text
# # 1. Tokens and embeddings
#
# About an hour. You need to have used PyTorch. At the end you know what a model reads: numbers of tokens, and a
# vector for each. Words are explained by `minilens glossary WORD`.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
print(STORY)
print(tokenizer.tokens(STORY))
# %% text
# A token is often a word with the space before it. `tokenizer.encode(text)` gives the ids, of shape [1, pos].
# %% exercise 1.1, 10 minutes
# The ids of the tokens of `STORY`, as a list of numbers.
# hint: `tokenizer.encode(STORY)` is a tensor with one row for each text; there is one text.
# hint: `.tolist()` makes a list of a tensor.
# null: there is nothing to measure yet. Look at the ids: are words that are alike close in number?
# solution
answer_1_1 = tokenizer.encode(STORY)[0].tolist()
# %% text
# `model.W_E` has a row for each token: its embedding, of width d_model. The cosine of two vectors is their product,
# each divided by its length: 1 for the same direction, 0 for a right angle.
# %% exercise 1.2, 20 minutes
# The five tokens whose embeddings have the largest cosine with that of `" girl"`, the nearest first, as a list of
# texts. Leave `" girl"` itself out.
# hint: `torch.nn.functional.normalize(model.W_E, dim=-1)` divides each row by its length.
# hint: The cosines with one row are `unit @ unit[girl]`, and `topk` finds the largest.
# hint: `tokenizer.decode(ids)` wants a tensor of ids, so decode each alone: `token[None]`.
# null: which cosine do two tokens have that have nothing to do with one another? That is exercise 1.3.
girl = tokenizer.id(" girl")
# solution
unit = torch.nn.functional.normalize(model.W_E, dim=-1)
nearest = (unit @ unit[girl]).topk(6).indices[1:]
answer_1_2 = [tokenizer.decode(token[None]) for token in nearest]
# %% exercise 1.3, 20 minutes
# The mean cosine of two different tokens, over all pairs: one number.
# hint: `unit @ unit.mT` has all cosines. The diagonal is each token with itself.
# hint: There are n * (n - 1) pairs, counted both ways.
# null: this is the null of exercise 1.2. How many times larger were the cosines there?
# solution
unit = torch.nn.functional.normalize(model.W_E, dim=-1)
cosines = unit @ unit.mT
answer_1_3 = (cosines.sum() - cosines.diagonal().sum()) / (len(unit) * (len(unit) - 1))
