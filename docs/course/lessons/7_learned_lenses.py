# %% text
# # 7. Learned lenses
#
# About an hour. Early rows may hold what the unembedding does not read: turned, scaled or moved. A learned lens maps
# each row first, by z = h A + b, with A and b fitted to text.
# %% code
model, tokenizer = minilens.load("tales-gpt2")
tokens = tokenizer.encode(STORY)
lens = minilens.load_lens("tales-gpt2/affine")
# %% exercise 7.1, 20 minutes
# The mean over the positions of KL(output ‖ row), for each of the nine rows of the logit lens.
# hint: KL(p ‖ q) is the sum over the vocabulary of p * (ln p - ln q), where p is the output and q the row.
# hint: `logits.log_softmax(-1)` is ln p. Or let the library do it: `minilens.logit_lens(model, tokens).kl_final`.
# null: KL of the last row is 0: it is the output.
# solution
answer_7_1 = minilens.logit_lens(model, tokens).kl_final.mean(1)
# %% exercise 7.2, 15 minutes
# The same with the learned lens.
# hint: `transport=lens`.
# null: a lens with 65,792 numbers a row can be right by heart. It was fitted to other text; was this one among it?
# with: lens
# solution
answer_7_2 = minilens.logit_lens(model, tokens, transport=lens).kl_final.mean(1)
# %% exercise 7.3, 20 minutes
# How far apart are two outputs of one text? The mean of KL(output at position p ‖ output at position p + 1).
# hint: `logprobs[:-1]` and `logprobs[1:]`.
# null: this is the null of both: a row further away than this reads nothing of its place.
# solution
logprobs = model(tokens)[0].log_softmax(-1)
one, other = logprobs[:-1], logprobs[1:]
answer_7_3 = (one.exp() * (one - other)).sum(-1).mean()
