# %% text
# # 2. One block by hand
#
# About an hour and a half. You read `minilens/gpt2.py`, the method `block`, before or beside it.
# `minilens walk "Once upon a time"` shows its lines with their numbers.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
tokens = tokenizer.encode(STORY)
trace = minilens.trace(model, tokens)
print(trace.blocks[0])
# %% exercise 2.1, 30 minutes
# The attention pattern of block 0, of shape [batch, head, query, key], from its queries and keys `q` and `k`, each
# [batch, head, pos, d_head].
# hint: The score of a query for a key is the product of the two vectors: `q @ k.mT`. It is divided by sqrt(d_head).
# hint: A query must not see what comes after it. `torch.ones(n, n).tril()` is 1 where it may see.
# hint: `scores.masked_fill(visible == 0, -torch.inf).softmax(-1)`.
# null: what would a row be if all visible keys were alike? 1 / (number of keys) each.
q, k = trace.blocks[0].q, trace.blocks[0].k
# solution
n, d_head = q.shape[2:]
scores = q @ k.mT / d_head**0.5
visible = torch.ones(n, n).tril()
answer_2_1 = scores.masked_fill(visible == 0, -torch.inf).softmax(-1)
# %% exercise 2.2, 30 minutes
# The stream after block 2, from the stream before it (`resid_pre`), from what each head has gathered (`z`) and from
# the hidden layer of the MLP (`mlp_post`). Each head writes through its own rows of `W_O`.
# hint: `w.W_O.view(n_heads, d_head, d_model)` has the rows of each head; `z @` that is what each head writes.
# hint: Sum over the heads, and add `w.b_O`. The MLP writes `mlp_post @ w.W_out + w.b_out`.
# null: take one head away. How much does the answer change, beside the length of the stream itself?
block, w = trace.blocks[2], model.blocks[2]
# solution
by_head = block.z @ w.W_O.view(8, 32, 256)
answer_2_2 = block.resid_pre + by_head.sum(1) + w.b_O + block.mlp_post @ w.W_out + w.b_out
# %% exercise 2.3, 20 minutes
# Heads often look at the first token. Two numbers in a tensor: the mean weight of position 0 in the patterns of the
# last block (over heads and queries), and the same if every query gave all visible keys the same weight.
# hint: `trace.blocks[-1].pattern[0][..., 0].mean()` is the first.
# hint: Query 0 sees 1 key, query 1 sees 2, and so on: the second is the mean of 1 / 1, 1 / 2, 1 / 3 ...
# null: the second number is the null.
# solution
pattern = trace.blocks[-1].pattern[0]
alike = 1 / torch.arange(1, pattern.shape[-1] + 1)
answer_2_3 = torch.stack([pattern[..., 0].mean(), alike.mean()])
